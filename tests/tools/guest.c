// SPDX-License-Identifier: BSD-3-Clause
/*
 * A guest, as the demo needs one: reads and writes 4 KiB at random over NBD,
 * one request at a time, verifies every read against a model file, and applies
 * every write to it.
 *
 *   guest URI MODEL RANGES SECONDS
 *
 * RANGES is a file with a line "OFFSET LENGTH" for each range that may be
 * written (bytes, multiples of 4096).  Ends after SECONDS (0: at SIGTERM) and
 * prints two lines: "working", after its first read; in the end reads, writes,
 * and the latencies in microseconds.
 */
#include <fcntl.h>
#include <libnbd.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { BLOCK = 4096, RANGES_MAX = 4096, SAMPLES_MAX = 1 << 20, FLUSH_EVERY = 64 };

struct range {
    uint64_t off, len;
};

struct samples {
    float *us;
    size_t n;
};

struct guest {
    struct nbd_handle *nbd;
    int model;
    uint64_t size;
    struct range ranges[RANGES_MAX];
    unsigned n_ranges;
    uint64_t rng;
    struct samples reads, writes;
    double first_read_us;
};

static volatile sig_atomic_t stop;

static void
on_term(int sig)
{
    stop = 1;
}

static double
now_us(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec * 1e6 + (double)ts.tv_nsec / 1e3;
}

static uint64_t
roll(struct guest *g, uint64_t n)
{
    g->rng ^= g->rng << 13;
    g->rng ^= g->rng >> 7;
    g->rng ^= g->rng << 17;
    return g->rng % n;
}

static void
add_sample(struct samples *s, double us)
{
    if (s->n < SAMPLES_MAX) {
        s->us[s->n++] = (float)us;
    }
}

static void
die(const char *what)
{
    fprintf(stderr, "guest: %s: %s\n", what,
            nbd_get_error() ? nbd_get_error() : "");
    exit(1);
}

static void
do_read(struct guest *g)
{
    unsigned char got[BLOCK], want[BLOCK];
    uint64_t off = roll(g, g->size / BLOCK) * BLOCK;
    double begin = now_us();

    if (nbd_pread(g->nbd, got, BLOCK, off, 0)) {
        die("read");
    }
    add_sample(&g->reads, now_us() - begin);
    if (pread(g->model, want, BLOCK, (off_t)off) != BLOCK ||
        memcmp(got, want, BLOCK)) {
        fprintf(stderr, "guest: WRONG DATA at offset %llu\n",
                (unsigned long long)off);
        exit(2);
    }
}

static void
do_write(struct guest *g)
{
    struct range *r = &g->ranges[roll(g, g->n_ranges)];
    uint64_t off = r->off + roll(g, r->len / BLOCK) * BLOCK;
    unsigned char buf[BLOCK];
    uint64_t tag = roll(g, UINT64_MAX);

    for (int i = 0; i < BLOCK; i += 8) {
        memcpy(buf + i, &tag, 8);
    }
    double begin = now_us();

    if (nbd_pwrite(g->nbd, buf, BLOCK, off, 0)) {
        die("write");
    }
    add_sample(&g->writes, now_us() - begin);
    if (pwrite(g->model, buf, BLOCK, (off_t)off) != BLOCK) {
        die("model");
    }
    if (g->writes.n % FLUSH_EVERY == 0 && nbd_flush(g->nbd, 0)) {
        die("flush");
    }
}

static int
by_value(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;

    return x < y ? -1 : x > y;
}

static double
percentile(struct samples *s, double p)
{
    if (!s->n) {
        return 0;
    }
    qsort(s->us, s->n, sizeof(*s->us), by_value);
    return s->us[(size_t)(p * (double)(s->n - 1))];
}

static void
load_ranges(struct guest *g, const char *path)
{
    FILE *f = fopen(path, "r");
    unsigned long long off, len;

    while (f && g->n_ranges < RANGES_MAX &&
           fscanf(f, "%llu %llu", &off, &len) == 2) {
        g->ranges[g->n_ranges++] = (struct range){off, len};
    }
    if (!f || !g->n_ranges) {
        fprintf(stderr, "guest: no ranges in %s\n", path);
        exit(1);
    }
    fclose(f);
}

int
main(int argc, char **argv)
{
    static struct guest g = {.rng = 88172645463325252ULL};

    if (argc != 5) {
        fprintf(stderr, "usage: guest URI MODEL RANGES SECONDS\n");
        return 1;
    }
    double begin = now_us(), seconds = atof(argv[4]);

    signal(SIGTERM, on_term);
    g.nbd = nbd_create();
    if (!g.nbd || nbd_connect_uri(g.nbd, argv[1])) {
        die("connect");
    }
    g.size = (uint64_t)nbd_get_size(g.nbd);
    g.model = open(argv[2], O_RDWR);
    if (g.model < 0) {
        die("model");
    }
    load_ranges(&g, argv[3]);
    g.rng ^= (uint64_t)time(NULL) << 20;
    g.reads.us = malloc(SAMPLES_MAX * sizeof(float));
    g.writes.us = malloc(SAMPLES_MAX * sizeof(float));
    do_read(&g);
    g.first_read_us = now_us() - begin;
    puts("working"); /* whoever started it may go on */
    fflush(stdout);
    while (!stop && (!seconds || now_us() - begin < seconds * 1e6)) {
        if (roll(&g, 2)) {
            do_read(&g);
        } else {
            do_write(&g);
        }
    }
    if (nbd_flush(g.nbd, 0)) {
        die("flush");
    }
    printf("first_us=%.0f reads=%zu writes=%zu read_p50=%.0f read_p99=%.0f "
           "write_p50=%.0f write_p99=%.0f\n",
           g.first_read_us, g.reads.n, g.writes.n, percentile(&g.reads, 0.5),
           percentile(&g.reads, 0.99), percentile(&g.writes, 0.5),
           percentile(&g.writes, 0.99));
    nbd_shutdown(g.nbd, 0);
    nbd_close(g.nbd);
    return 0;
}
