// SPDX-License-Identifier: BSD-3-Clause
#include "sim/script.h"

#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/mem.h"

static const char *const op_names[] = {
    [STEP_READ] = "read",           [STEP_WRITE] = "write",
    [STEP_WRITE_FUA] = "write-fua", [STEP_ZERO] = "zero",
    [STEP_UNMAP] = "unmap",         [STEP_DISCARD] = "discard",
    [STEP_FLUSH] = "flush",
};

void
script_fini(struct script *sc)
{
    free(sc->setup);
    free(sc->image);
    free(sc->steps);
    *sc = (struct script){0};
}

struct script
script_copy(const struct script *sc)
{
    struct script copy = *sc;

    copy.setup = xstrdup(sc->setup ? sc->setup : "");
    copy.image = xstrdup(sc->image ? sc->image : "");
    copy.steps = xzalloc((sc->n_steps + 1) * sizeof(*copy.steps));
    for (unsigned i = 0; i < sc->n_steps; i++) {
        copy.steps[i] = sc->steps[i];
    }
    return copy;
}

void
script_add(struct script *sc, struct step step)
{
    sc->steps = xrealloc(sc->steps, (sc->n_steps + 1) * sizeof(step));
    sc->steps[sc->n_steps++] = step;
}

unsigned
script_guests(const struct script *sc)
{
    unsigned n = 0;

    for (unsigned i = 0; i < sc->n_steps; i++) {
        n = sc->steps[i].guest >= n ? sc->steps[i].guest + 1 : n;
    }
    return n;
}

static unsigned long long
ull(uint64_t v)
{
    return v;
}

static void
print_trouble(const struct script *sc, FILE *f, const char *indent)
{
    switch (sc->trouble) {
    case TROUBLE_NONE:
        break;
    case TROUBLE_FAIL:
        fprintf(f, "%sfail %llu %d\n", indent, ull(sc->at), sc->error);
        break;
    case TROUBLE_SWITCH:
        fprintf(f, "%sswitch %llu\n", indent, ull(sc->at));
        break;
    case TROUBLE_CUT:
        fprintf(f, "%scut %llu\n", indent, ull(sc->at));
        break;
    case TROUBLE_KILL:
        fprintf(f, "%skill %llu\n", indent, ull(sc->at));
        break;
    case TROUBLE_POWER:
        fprintf(f, "%spower %llu %s %llu\n", indent, ull(sc->at),
                sc->fates[0] ? sc->fates : "-", ull(sc->torn));
        break;
    }
}

void
script_print(const struct script *sc, FILE *f, const char *indent)
{
    fprintf(f, "%ssetup %s\n%sseed %llu\n", indent, sc->setup, indent,
            ull(sc->seed));
    if (sc->calm) {
        fprintf(f, "%scalm\n", indent);
    }
    if (sc->alone) {
        fprintf(f, "%salone\n", indent);
    }
    for (const char *p = sc->image; *p;) {
        size_t len = strcspn(p, "\n");

        fprintf(f, "%simage %.*s\n", indent, (int)len, p);
        p += len + (p[len] == '\n');
    }
    for (unsigned i = 0; i < sc->n_steps; i++) {
        const struct step *st = &sc->steps[i];

        fprintf(f, "%sstep %u %s", indent, st->guest, op_names[st->op]);
        if (st->op != STEP_FLUSH) {
            fprintf(f, " %llu %llu", ull(st->sector), ull(st->n));
        }
        fprintf(f, "\n");
    }
    if (sc->lie) {
        fprintf(f, "%slie %llu\n", indent, ull(sc->lie));
    }
    print_trouble(sc, f, indent);
}

static bool
parse_step(const char *line, struct script *sc)
{
    struct step st = {0};
    unsigned long long sector = 0, n = 0;
    char name[32];
    int got =
        sscanf(line, "step %u %31s %llu %llu", &st.guest, name, &sector, &n);

    for (size_t i = 0; i < ARRAY_LEN(op_names) && got >= 2; i++) {
        if (!strcmp(name, op_names[i]) && (got == 4 || i == STEP_FLUSH)) {
            st.op = (enum step_op)i;
            st.sector = sector;
            st.n = n;
            script_add(sc, st);
            return true;
        }
    }
    return false;
}

static bool
parse_trouble(const char *line, struct script *sc)
{
    unsigned long long at = 0, torn = 0;

    if (sscanf(line, "fail %llu %d", &at, &sc->error) == 2) {
        sc->trouble = TROUBLE_FAIL;
    } else if (sscanf(line, "switch %llu", &at) == 1) {
        sc->trouble = TROUBLE_SWITCH;
    } else if (sscanf(line, "cut %llu", &at) == 1) {
        sc->trouble = TROUBLE_CUT;
    } else if (sscanf(line, "kill %llu", &at) == 1) {
        sc->trouble = TROUBLE_KILL;
    } else if (sscanf(line, "power %llu %255s %llu", &at, sc->fates, &torn) ==
               3) {
        sc->trouble = TROUBLE_POWER;
        sc->torn = torn;
        if (!strcmp(sc->fates, "-")) {
            sc->fates[0] = 0;
        }
    } else {
        return false;
    }
    sc->at = at;
    return true;
}

static bool
parse_line(const char *line, struct script *sc)
{
    unsigned long long v = 0;
    char name[64];

    if (!*line || *line == '#') {
        return true;
    }
    if (!strncmp(line, "image ", 6)) {
        char *image = xasprintf("%s%s\n", sc->image, line + 6);

        free(sc->image);
        sc->image = image;
    } else if (sscanf(line, "setup %63s", name) == 1) {
        free(sc->setup);
        sc->setup = xstrdup(name);
    } else if (sscanf(line, "seed %llu", &v) == 1) {
        sc->seed = v;
    } else if (sscanf(line, "lie %llu", &v) == 1) {
        sc->lie = v;
    } else if (!strcmp(line, "calm")) {
        sc->calm = true;
    } else if (!strcmp(line, "alone")) {
        sc->alone = true;
    } else {
        return parse_step(line, sc) || parse_trouble(line, sc);
    }
    return true;
}

bool
script_parse(const char *text, struct script *ret)
{
    *ret = (struct script){.setup = xstrdup(""), .image = xstrdup("")};
    while (*text) {
        size_t len = strcspn(text, "\n");
        auto_free char *line = xasprintf("%.*s", (int)len, text);

        if (!parse_line(line, ret)) {
            printf("# no line of a script: %s\n", line);
            script_fini(ret);
            return false;
        }
        text += len + (text[len] == '\n');
    }
    return true;
}
