#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Makes C code and documentation from src/control/qmp.schema.

    qapi-gen.py SCHEMA --outdir DIR     schema_{types,dispatch}.[ch],
                                        schema_introspect.c
    qapi-gen.py SCHEMA --reference FILE the Markdown reference
    qapi-gen.py SCHEMA --reference FILE --check
                                        exit 1 where FILE is out of date

The schema's language is explained at the top of qmp.schema.
"""
import argparse
import json
import os
import re
import sys

HEAD = '// SPDX-License-Identifier: BSD-3-Clause\n' \
       '/* Made by tools/qapi-gen.py from qmp.schema; do not edit. */\n'


class SchemaError(Exception):
    pass


def snake(name):
    """CamelCase, kebab-case and SHOUT_CASE as an identifier's part."""
    if name.isupper():
        name = name.lower()
    name = re.sub(r'([a-z0-9])([A-Z])', r'\1_\2', name)
    name = re.sub(r'([A-Z])([A-Z][a-z])', r'\1_\2', name)
    ident = re.sub(r'[^A-Za-z0-9]', '_', name).lower()
    return ident + '_' if ident in ('int', 'default', 'case', 'enum') else ident


# --- The model --------------------------------------------------------------

class Type:
    def __init__(self, name, kind, doc=''):
        self.name, self.kind, self.doc = name, kind, doc
        self.members = []       # of objects
        self.values = []        # of enums: (value, doc)
        self.variants = []      # of unions and alternates: (name, Type)
        self.base = self.tag = self.element = None
        self.c_name = 'schema_type_' + snake(name.strip('[]'))
        if kind == 'array':
            self.c_name = 'schema_array_' + snake(name.strip('[]'))

    def all_members(self):
        return (self.base.all_members() if self.base else []) + self.members


class Member:
    def __init__(self, name, optional, type_name, features, doc):
        self.name, self.optional, self.type = name, optional, type_name
        self.features, self.doc = features, doc


class Command:
    def __init__(self, name, boxed, ret, flags, doc):
        self.name, self.boxed, self.ret = name, boxed, ret
        self.flags, self.doc = flags, doc
        self.args = None
        self.builtin = 'builtin' in flags
        self.features = [f for f in flags if f != 'builtin']


# name: kind, largest value, name in errors, JSON type, C type
BUILTINS = {
    'str': ('STR', 0, 'string', 'string', 'const char *'),
    'bool': ('BOOL', 0, 'boolean', 'boolean', 'bool '),
    'int': ('INT', 0, 'integer', 'int', 'int64_t '),
    'uint16': ('UINT', 0xffff, 'uint16_t', 'int', 'uint16_t '),
    'uint32': ('UINT', 0xffffffff, 'uint32_t', 'int', 'uint32_t '),
    'uint64': ('UINT', 2 ** 64 - 1, 'uint64', 'int', 'uint64_t '),
    'size': ('SIZE', 2 ** 64 - 1, 'uint64', 'int', 'uint64_t '),
    'null': ('NULL', 0, 'null', 'null', 'json_t *'),
    'any': ('ANY', 0, 'any', 'value', 'json_t *'),
}


class Schema:
    def __init__(self):
        self.types, self.commands, self.events = {}, [], []
        for name in BUILTINS:
            self.types[name] = Type(name, 'builtin')

    def add(self, t):
        if t.name in self.types:
            raise SchemaError(f'{t.name} is defined twice')
        self.types[t.name] = t
        return t

    def type(self, name):
        if name.startswith('['):
            if name not in self.types:
                t = Type(name, 'array')
                t.element = self.type(name[1:-1])
                self.types[name] = t
            return self.types[name]
        if name not in self.types:
            raise SchemaError(f'{name} is not defined')
        return self.types[name]

    def resolve(self):
        for t in list(self.types.values()):
            if isinstance(t.base, str):
                t.base = self.type(t.base)
            for m in t.members:
                m.type = self.type(m.type)
            t.variants = [(n, self.type(v)) for n, v in t.variants]
        for c in self.commands:
            c.args = self.type(c.boxed) if c.boxed else c.args
            c.ret = self.type(c.ret) if c.ret else None
        for t in self.types.values():
            self.check(t)

    @staticmethod
    def check(t):
        names = [m.name for m in t.all_members()]
        if len(set(names)) != len(names):
            raise SchemaError(f'{t.name} has a member twice')
        for m in t.members:
            if not m.doc:
                raise SchemaError(f'{t.name}.{m.name} has no doc')
        if t.tag:
            tag = [m for m in t.members if m.name == t.tag]
            if not tag or tag[0].type.kind != 'enum' or tag[0].optional:
                raise SchemaError(f'{t.name}: the tag is no enum member')
            known = [v for v, _ in tag[0].type.values]
            for name, variant in t.variants:
                clash = set(names) & {m.name for m in variant.all_members()}
                if name not in known or clash:
                    raise SchemaError(f'{t.name}: bad case {name} {clash}')


# --- Reading ----------------------------------------------------------------

LINE = re.compile(r'^(?P<words>[^"]*?)\s*(?:"(?P<doc>[^"]*)")?$')


def open_definition(schema, words, doc):
    """Returns the object that the indented lines below add to."""
    kind, name, rest = words[0], words[1], words[2:]
    flags = [w[1:] for w in rest if w.startswith('!')]
    rest = [w for w in rest if not w.startswith('!')]
    if not doc:
        raise SchemaError(f'{name} has no doc')
    if kind in ('enum', 'alternate'):
        return schema.add(Type(name, kind, doc))
    if kind in ('struct', 'union', 'event'):
        t = Type(name, 'object', doc)
        if rest[:1] == [':']:
            t.base = rest[1]
        elif rest[:1] == ['on']:
            t.tag = rest[1]
        if kind == 'event':
            schema.events.append(t)
            t.c_name = 'schema_event_' + snake(name)
        return schema.add(t)
    if kind != 'command':
        raise SchemaError(f'unknown keyword {kind}')
    boxed = next((w[1:-1] for w in rest if w.startswith('(')), None)
    ret = rest[rest.index('->') + 1] if '->' in rest else None
    c = Command(name, boxed, ret, flags, doc)
    schema.commands.append(c)
    if not boxed:
        c.args = schema.add(Type('args ' + name, 'object', doc))
        c.args.c_name = 'schema_args_' + snake(name)
    return c.args


def add_line(t, words, doc):
    if t.kind == 'enum':
        t.values.append((words[0], doc or ''))
    elif t.kind == 'alternate':
        t.variants.append((words[0], words[1]))
    elif words[0] == 'case' and t.tag:
        t.variants.append((words[1], words[2]))
    else:
        features = [w[1:] for w in words[2:]]
        name = words[0].rstrip('?')
        t.members.append(Member(name, words[0].endswith('?'), words[1],
                                features, doc))


def parse(path):
    schema, current = Schema(), None
    with open(path, encoding='utf-8') as f:
        for number, line in enumerate(f, 1):
            line = line.rstrip()
            if not line or line.lstrip().startswith('#'):
                continue
            try:
                m = LINE.match(line)
                if not m:
                    raise SchemaError('unbalanced quotes')
                words = m['words'].split()
                if line.startswith(' '):
                    add_line(current, words, m['doc'])
                else:
                    current = open_definition(schema, words, m['doc'])
            except (SchemaError, AttributeError, IndexError) as e:
                raise SchemaError(f'{path}:{number}: {e}') from None
    schema.resolve()
    return schema


# --- C: the types -----------------------------------------------------------

def c_string(s):
    return json.dumps(s)


def enum_names(t):
    base = 'qmp_' + snake(t.name)
    return base, [f'{base}_{snake(v)}'.upper() for v, _ in t.values]


def field_lines(m):
    """The C members for a schema member; pointers say absence by NULL."""
    name, t = snake(m.name), m.type
    if t.kind == 'enum':
        decl = f'enum qmp_{snake(t.name)} {name};'
    elif t.kind == 'builtin':
        decl = f'{BUILTINS[t.name][4]}{name};'
    else:
        decl = f'json_t *{name};'
    lines = [f'    {decl} /* {m.doc} */']
    if m.optional and '*' not in decl:
        lines.insert(0, f'    bool has_{name};')
    return lines


def struct_text(tag, t):
    out = [f'/* {t.doc} */', f'struct {tag} {{',
           '    json_t *json; /* all of it, with the variant\'s members */']
    for m in t.all_members():
        out += field_lines(m)
    return '\n'.join(out + ['};', ''])


def decode_text(tag, t, static):
    out = []
    if static:
        out.append('static void')
    else:
        out.append('void')
    out += [f'decode_{tag}(json_t *json, struct {tag} *ret)', '{',
            f'    *ret = (struct {tag}){{.json = json}};']
    members = t.all_members()
    if members:
        out += ['    json_t *v;', '']
    for m in members:
        name = snake(m.name)
        get = f'    v = json_object_get(json, {c_string(m.name)});'
        if m.type.kind == 'enum':
            value = f'schema_enum_parse(&{m.type.c_name}, ' \
                    'json_string_value(v))'
        elif m.type.kind == 'builtin':
            value = {'STR': 'json_string_value(v)',
                     'BOOL': 'json_is_true(v)',
                     'INT': 'json_integer_value(v)',
                     'UINT': f'({BUILTINS[m.type.name][4].strip()})'
                             'json_integer_value(v)',
                     'SIZE': '(uint64_t)json_integer_value(v)',
                     }.get(BUILTINS[m.type.name][0], 'v')
        else:
            value = 'v'
        if len(field_lines(m)) == 2:
            out += [get, '    if (v) {', f'        ret->has_{name} = true;',
                    f'        ret->{name} = {value};', '    }']
        else:
            out += [get, f'    ret->{name} = {value};']
    return '\n'.join(out + ['}', ''])


def named_structs(schema):
    """Types that handlers may want as C structs."""
    args = {c.args for c in schema.commands}
    return [t for t in schema.types.values() if t.kind == 'object'
            and t not in args and t not in schema.events]


def types_header(schema):
    out = [HEAD, '#ifndef SLUICE_SCHEMA_TYPES_H',
           '#define SLUICE_SCHEMA_TYPES_H', '', '#include <jansson.h>',
           '#include <stdbool.h>', '#include <stdint.h>', '',
           '#include "control/schema.h"', '']
    for t in schema.types.values():
        if t.kind == 'enum':
            base, names = enum_names(t)
            out += [f'/* {t.doc} */', f'enum {base} {{']
            out += [f'    {n}, /* {d or v} */'
                    for n, (v, d) in zip(names, t.values)]
            out += ['};', f'#define {base.upper()}__COUNT {len(names)}',
                    f'const char *{base}_name(enum {base} value);', '']
    out += ['/*\n * Structs and their decoders.  A decoder takes an object '
            'that schema_check()\n * has accepted; strings and json_t '
            'pointers belong to that object, and absent\n * ones are '
            'NULL.\n */']
    for t in named_structs(schema):
        tag = 'qmp_' + snake(t.name)
        out += [struct_text(tag, t),
                f'void decode_{tag}(json_t *json, struct {tag} *ret);', '']
    for c in schema.commands:
        out.append(struct_text('args_' + snake(c.name), c.args))
    for t in schema.types.values():
        out.append(f'extern const struct schema_type {t.c_name};')
    return '\n'.join(out + ['', '#endif', ''])


def table_text(t):
    """The static tables of a type and its schema_type."""
    out, fields = [], []
    name = t.c_name.replace('schema_', '', 1)
    if t.kind == 'enum':
        out.append(f'static const char *const values_{name}[] = {{')
        out += [f'    {c_string(v)},' for v, _ in t.values] + ['};']
        fields += [f'.values = values_{name}', f'.n_values = {len(t.values)}']
    members = t.all_members()
    if members:
        out.append(f'static const struct schema_member members_{name}[] = {{')
        out += [f'    {{{c_string(m.name)}, &{m.type.c_name}, '
                f'{"true" if m.optional else "false"}}},' for m in members]
        out.append('};')
        fields += [f'.members = members_{name}', f'.n_members = {len(members)}']
    if t.variants:
        out.append(f'static const struct schema_variant variants_{name}[]'
                   ' = {')
        out += [f'    {{{c_string(n)}, &{v.c_name}}},' for n, v in t.variants]
        out.append('};')
        fields += [f'.variants = variants_{name}',
                   f'.n_variants = {len(t.variants)}']
    if t.tag:
        fields.append(f'.tag = {c_string(t.tag)}')
    if t.element:
        fields.append(f'.element = &{t.element.c_name}')
    kind, shown = t.kind.upper(), t.name
    if t.kind == 'builtin':
        kind, largest, shown = BUILTINS[t.name][:3]
        if largest:
            fields.append(f'.max = {largest}U' + 'LL' * (largest > 2 ** 32))
    fields = [f'.name = {c_string(shown)}', f'.kind = SCHEMA_{kind}'] + fields
    out.append(f'const struct schema_type {t.c_name} = {{')
    out += [f'    {f},' for f in fields] + ['};', '']
    return '\n'.join(out)


def types_source(schema):
    out = [HEAD, '#include "schema_types.h"', '']
    out += [table_text(t) for t in schema.types.values()]
    for t in schema.types.values():
        if t.kind == 'enum':
            base, _ = enum_names(t)
            name = t.c_name.replace('schema_', '', 1)
            out.append(f'const char *\n{base}_name(enum {base} value)\n{{\n'
                       f'    return values_{name}[value];\n}}\n')
    for t in named_structs(schema):
        out.append(decode_text('qmp_' + snake(t.name), t, False))
    return '\n'.join(out)


# --- C: the dispatch table --------------------------------------------------

def dispatch_header(schema):
    out = [HEAD, '#ifndef SLUICE_SCHEMA_DISPATCH_H',
           '#define SLUICE_SCHEMA_DISPATCH_H', '',
           '#include "schema_types.h"', '', 'struct control;', 'struct err;',
           '', '/*\n * The handlers: 0, or -errno with @err set.  *ret '
           'belongs to the\n * caller and may stay NULL for an empty '
           'object.  @args lives until the\n * handler returns.\n */']
    for c in schema.commands:
        n = snake(c.name)
        if c.name != 'qmp_capabilities':
            out += [f'/* {c.doc} */',
                    f'int cmd_{n}(struct control *ctl,',
                    f'    const struct args_{n} *args, json_t **ret, '
                    'struct err *err);']
    out += ['', '/* X(name) for every handler that the program must have; '
            'tests make stubs of it. */', '#define QMP_HANDLERS(X) \\']
    names = [snake(c.name) for c in schema.commands if not c.builtin]
    out += [f'    X({n}) \\' for n in names[:-1]] + [f'    X({names[-1]})']
    return '\n'.join(out + ['', '#endif', ''])


def dispatch_source(schema):
    out = [HEAD, '#include "control/qmp_dispatch.h"', '',
           '#include "schema_dispatch.h"', '']
    for c in schema.commands:
        n = snake(c.name)
        if c.name == 'qmp_capabilities':
            continue
        out += [decode_text('args_' + n, c.args, True),
                'static int', f'call_{n}(struct control *ctl, json_t *json, '
                'json_t **ret,', '    struct err *err)', '{',
                f'    struct args_{n} args;', '',
                f'    decode_args_{n}(json, &args);',
                f'    return cmd_{n}(ctl, &args, ret, err);', '}', '']
    out.append('const struct qmp_command qmp_commands[] = {')
    for c in schema.commands:
        call = 'NULL' if c.name == 'qmp_capabilities' else \
            'call_' + snake(c.name)
        ret = f'&{c.ret.c_name}' if c.ret else 'NULL'
        out.append(f'    {{{c_string(c.name)}, &{c.args.c_name}, {ret}, '
                   f'{call}}},')
    out += ['};', f'const size_t qmp_commands_len = {len(schema.commands)};',
            '', 'const struct schema_type *const qmp_events[] = {']
    out += [f'    &{e.c_name},' for e in schema.events]
    out += ['};', f'const size_t qmp_events_len = {len(schema.events)};', '']
    return '\n'.join(out)


# --- The introspection ------------------------------------------------------

class Introspection:
    """What query-qmp-schema returns: type names are masked by numbers, so
    that nobody relies on them, and all integers are `int`, as in QEMU."""

    def __init__(self, schema):
        self.entities, self.names = [], {}
        self.empty = self.object_entity('empty', Type('empty', 'object'))
        for c in schema.commands:
            e = {'name': c.name, 'meta-type': 'command',
                 'arg-type': self.ref(c.args),
                 'ret-type': self.ref(c.ret) if c.ret else self.empty}
            self.entities.append(self.featured(e, c.features))
        for t in schema.events:
            self.entities.append({'name': t.name, 'meta-type': 'event',
                                  'arg-type': self.ref(t)})

    @staticmethod
    def featured(entity, features):
        return {**entity, 'features': features} if features else entity

    def number(self, key):
        self.names[key] = str(len(self.names))
        return self.names[key]

    def object_entity(self, key, t):
        name = self.number(key)
        entity = {'name': name, 'meta-type': 'object', 'members': []}
        self.entities.append(entity)
        for m in t.all_members():
            member = {'name': m.name, 'type': self.ref(m.type)}
            if m.optional:
                member['default'] = None
            entity['members'].append(self.featured(member, m.features))
        if t.tag:
            tag = next(m for m in t.members if m.name == t.tag)
            cases = dict(t.variants)
            entity['tag'] = t.tag
            entity['variants'] = [
                {'case': v, 'type': self.ref(cases[v])
                 if v in cases else self.empty}
                for v, _ in tag.type.values]
        return name

    def ref(self, t):
        if t.kind == 'builtin':
            return self.builtin(t)
        if t.kind == 'array':
            name = f'[{self.ref(t.element)}]'
            if name not in self.names:
                self.names[name] = name
                self.entities.append({'name': name, 'meta-type': 'array',
                                      'element-type': name[1:-1]})
            return name
        if t in self.names:
            return self.names[t]
        if t.kind == 'object':
            if not t.all_members():
                return self.empty
            return self.object_entity(t, t)
        name = self.number(t)
        entity = {'name': name, 'meta-type': t.kind}
        self.entities.append(entity)
        if t.kind == 'enum':
            entity['members'] = [{'name': v} for v, _ in t.values]
            entity['values'] = [v for v, _ in t.values]
        else:
            entity['members'] = [{'type': self.ref(v)} for _, v in t.variants]
        return name

    def builtin(self, t):
        name = t.name if BUILTINS[t.name][3] != 'int' else 'int'
        if name not in self.names:
            self.names[name] = name
            self.entities.append({'name': name, 'meta-type': 'builtin',
                                  'json-type': BUILTINS[name][3]})
        return name


def introspect_source(schema):
    out = [HEAD, '#include "control/qmp_dispatch.h"', '',
           'const char qmp_introspection[] =', '    "["']
    entities = Introspection(schema).entities
    for i, e in enumerate(entities):
        comma = ',' if i + 1 < len(entities) else ''
        text = json.dumps(e, separators=(',', ':')) + comma
        out += [f'    {c_string(text[j:j + 500])}'
                for j in range(0, len(text), 500)]
    return '\n'.join(out + ['    "]";', ''])


# --- The reference ----------------------------------------------------------

def type_link(t):
    if t.kind == 'array':
        return 'list of ' + type_link(t.element)
    if t.kind == 'builtin':
        return t.name
    return f'[{t.name}](#{t.name.lower()})'


def member_rows(members):
    rows = ['| member | type | |', '| --- | --- | --- |']
    for m in members:
        name = f'`{m.name}`' + (', optional' if m.optional else '')
        doc = m.doc + ''.join(f' *({f})*' for f in m.features)
        rows.append(f'| {name} | {type_link(m.type)} | {doc} |')
    return rows + ['']


def object_text(t):
    out = []
    if t.base:
        out += [f'As {type_link(t.base)}, and:', '']
    if t.members:
        out += member_rows(t.members)
    for case, variant in t.variants:
        out.append(f'- With `{t.tag}` = `{case}`: also the members of '
                   f'{type_link(variant)}.')
    return out + ['' if t.variants else None]


def type_text(t):
    out = [f'### {t.name}', '', t.doc, '']
    if t.kind == 'enum':
        out += [f'- `{v}`' + (f': {d}' if d else '') for v, d in t.values]
        out.append('')
    elif t.kind == 'alternate':
        out.append('One of: ' +
                   ', '.join(type_link(v) for _, v in t.variants) + '.')
        out.append('')
    else:
        out += object_text(t)
    return out


def command_text(c):
    out = [f'### {c.name}', '',
           c.doc + ''.join(f' *({f})*' for f in c.features), '']
    if c.boxed:
        out += [f'Takes {type_link(c.args)}.', '']
    else:
        out += object_text(c.args)
    if c.ret:
        out += [f'Returns: {type_link(c.ret)}.', '']
    return out


def reference(schema):
    args = {c.args for c in schema.commands if not c.boxed}
    out = ['<!-- Made by tools/qapi-gen.py from src/control/qmp.schema; '
           'do not edit. -->', '# The control protocol', '',
           'Commands, events and types of the control socket. The protocol '
           'itself', 'is QMP: see QEMU\'s "QEMU Machine Protocol '
           'Specification".', '', '## Commands', '']
    for c in schema.commands:
        out += command_text(c)
    out += ['## Events', '']
    for e in schema.events:
        out += [f'### {e.name}', '', e.doc, ''] + object_text(e)
    out += ['## Types', '', 'Built-in: `str`, `bool`, `int` (64 bits, '
            'signed), `uint16`, `uint32`,', '`uint64`, `size` (bytes), '
            '`null`, `any`.', '']
    for t in schema.types.values():
        if t.kind not in ('builtin', 'array') and t not in args and \
                t not in schema.events:
            out += type_text(t)
    return '\n'.join(line for line in out if line is not None).rstrip() + '\n'


def main():
    p = argparse.ArgumentParser()
    p.add_argument('schema')
    p.add_argument('--outdir')
    p.add_argument('--reference')
    p.add_argument('--check', action='store_true')
    a = p.parse_args()
    try:
        schema = parse(a.schema)
    except SchemaError as e:
        sys.exit(f'qapi-gen: {e}')
    if a.outdir:
        for name, make in (('schema_types.h', types_header),
                           ('schema_types.c', types_source),
                           ('schema_dispatch.h', dispatch_header),
                           ('schema_dispatch.c', dispatch_source),
                           ('schema_introspect.c', introspect_source)):
            with open(os.path.join(a.outdir, name), 'w') as f:
                f.write(make(schema))
    if a.reference and a.check:
        with open(a.reference) as f:
            if f.read() != reference(schema):
                sys.exit(f'{a.reference} is out of date: run '
                         '"ninja reference"')
    elif a.reference:
        with open(a.reference, 'w') as f:
            f.write(reference(schema))


if __name__ == '__main__':
    main()
