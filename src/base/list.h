// SPDX-License-Identifier: BSD-3-Clause
/* Intrusive doubly linked lists, circular, with a head that is a node. */
#ifndef SLUICE_BASE_LIST_H
#define SLUICE_BASE_LIST_H

#include <stdbool.h>

#include "base/mem.h"

struct list {
    struct list *next, *prev;
};

static inline void
list_init(struct list *l)
{
    l->next = l->prev = l;
}

static inline bool
list_empty(const struct list *l)
{
    return l->next == l;
}

static inline void
list_insert_between(struct list *n, struct list *prev, struct list *next)
{
    n->prev = prev;
    n->next = next;
    prev->next = n;
    next->prev = n;
}

/* In front of the first element. */
static inline void
list_push_front(struct list *head, struct list *n)
{
    list_insert_between(n, head, head->next);
}

/* Behind the last element. */
static inline void
list_push(struct list *head, struct list *n)
{
    list_insert_between(n, head->prev, head);
}

/* Removing an element that is in no list (just initialised) is harmless. */
static inline void
list_remove(struct list *n)
{
    n->prev->next = n->next;
    n->next->prev = n->prev;
    list_init(n);
}

/* Moves all elements of @from behind those of @to. */
static inline void
list_splice(struct list *to, struct list *from)
{
    if (list_empty(from)) {
        return;
    }
    from->next->prev = to->prev;
    from->prev->next = to;
    to->prev->next = from->next;
    to->prev = from->prev;
    list_init(from);
}

#define list_first(head, type, member)                                         \
    container_of((head)->next, type, member)

#define list_for_each(it, head)                                                \
    for (struct list *it = (head)->next; it != (head); it = it->next)

/* The body may remove @it (and nothing else). */
#define list_for_each_safe(it, head)                                           \
    for (struct list *it = (head)->next, *it##_next = it->next; it != (head);  \
         it = it##_next, it##_next = it->next)

#endif
