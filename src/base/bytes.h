// SPDX-License-Identifier: BSD-3-Clause
/*
 * Integers on disk and on the wire, checked sums and products of outside
 * numbers, and alignment.  All work on byte pointers of any alignment.
 */
#ifndef SLUICE_BASE_BYTES_H
#define SLUICE_BASE_BYTES_H

#include <endian.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#define KIB 1024ULL
#define MIB (1024ULL * KIB)
#define GIB (1024ULL * MIB)
#define TIB (1024ULL * GIB)

#define BYTES_LD_ST(bits, order)                                               \
    static inline uint##bits##_t ld_##order##bits(const void *p)              \
    {                                                                          \
        uint##bits##_t v;                                                      \
        memcpy(&v, p, sizeof(v));                                              \
        return order##bits##toh(v);                                            \
    }                                                                          \
    static inline void st_##order##bits(void *p, uint##bits##_t v)            \
    {                                                                          \
        v = hto##order##bits(v);                                               \
        memcpy(p, &v, sizeof(v));                                              \
    }

BYTES_LD_ST(16, be)
BYTES_LD_ST(32, be)
BYTES_LD_ST(64, be)
BYTES_LD_ST(16, le)
BYTES_LD_ST(32, le)
BYTES_LD_ST(64, le)

/* False, with *ret undefined, where the result does not fit. */
static inline bool
add_ok(uint64_t a, uint64_t b, uint64_t *ret)
{
    return !__builtin_add_overflow(a, b, ret);
}

static inline bool
mul_ok(uint64_t a, uint64_t b, uint64_t *ret)
{
    return !__builtin_mul_overflow(a, b, ret);
}

/* @align is a power of two. */
static inline uint64_t
align_down(uint64_t v, uint64_t align)
{
    return v & ~(align - 1);
}

static inline uint64_t
align_up(uint64_t v, uint64_t align)
{
    return (v + align - 1) & ~(align - 1);
}

static inline bool
is_aligned(uint64_t v, uint64_t align)
{
    return (v & (align - 1)) == 0;
}

static inline bool
is_pow2(uint64_t v)
{
    return v && !(v & (v - 1));
}

static inline uint64_t
min_u64(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static inline uint64_t
max_u64(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

static inline uint64_t
div_up(uint64_t a, uint64_t b)
{
    return a / b + (a % b != 0);
}

/* True where all @len bytes are zero. */
bool bytes_are_zero(const void *p, size_t len);

#endif
