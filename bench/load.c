// SPDX-License-Identifier: BSD-3-Clause
/*
 * The load of the bench: one NBD connection over a Unix socket, a fixed number
 * of requests in flight, as little work of its own as can be, so that what is
 * measured is the server.
 *
 *   load --socket PATH [--export NAME] [--op read|write] [--order random|sequential]
 *        [--block BYTES] [--depth N] [--seconds S] [--offset BYTES]
 *        [--length BYTES] [--count N] [--seed N] [--pid PID]
 *
 * All replies that one receive brings are answered with one gathered send.
 * It ends after --seconds (3 by default), after --count requests, or when it
 * is told to with SIGTERM, whichever comes first, with what is in flight.
 * Prints one JSON object: requests, seconds, iops, bytes_per_second, latencies
 * in microseconds, and with --pid the CPU time that this process took
 * meanwhile, in microseconds per request.  Simple replies only (NBD protocol,
 * "Simple reply message"): the client never asks for structured ones.
 */
#include <arpa/inet.h>
#include <endian.h>
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum {
    DEPTH_MAX = 256,
    SAMPLES_MAX = 1 << 22,
    RECEIVE = 1 << 20,
    REQUEST_SIZE = 28,
    REPLY_SIZE = 16,
};

struct load {
    const char *socket, *export;
    bool write, sequential;
    uint64_t block, offset, length, count;
    unsigned depth;
    double seconds;
    uint64_t rng;
    pid_t pid;

    int fd;
    uint64_t size, next, sent, done;
    uint64_t started_ns[DEPTH_MAX];
    float *samples;
    size_t n_samples;
    unsigned char *payload;
    unsigned char requests[DEPTH_MAX][REQUEST_SIZE];
    unsigned free_slots[DEPTH_MAX], n_free;
};

static void __attribute__((format(printf, 1, 2), noreturn))
die(const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    fputs("load: ", stderr);
    vfprintf(stderr, fmt, ap);
    fputc('\n', stderr);
    va_end(ap);
    exit(1);
}

static uint64_t
clock_ns(clockid_t id)
{
    struct timespec ts;

    if (clock_gettime(id, &ts)) {
        die("cannot read a clock: %s", strerror(errno));
    }
    return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

/* CPU time of a process, threads that ended included (as glibc encodes it). */
static uint64_t
cpu_ns(pid_t pid)
{
    return pid ? clock_ns((clockid_t)((~(unsigned)pid << 3) | 2)) : 0;
}

static uint64_t
roll(struct load *l)
{
    l->rng ^= l->rng << 13;
    l->rng ^= l->rng >> 7;
    l->rng ^= l->rng << 17;
    return l->rng;
}

/* The handshake (NBD protocol, "Fixed newstyle negotiation"). */

static void
get(int fd, void *p, size_t len)
{
    if (len && recv(fd, p, len, MSG_WAITALL) != (ssize_t)len) {
        die("the server closed the connection in the handshake");
    }
}

static void
put(int fd, const void *p, size_t len)
{
    if (send(fd, p, len, MSG_NOSIGNAL) != (ssize_t)len) {
        die("cannot send: %s", strerror(errno));
    }
}

static void
put_option_go(struct load *l)
{
    unsigned char msg[16 + 4 + 256 + 2];
    uint32_t name = (uint32_t)strlen(l->export);
    uint64_t magic = htobe64(0x49484156454F5054);
    uint32_t option = htobe32(7), len = htobe32(4 + name + 2);
    uint32_t name_be = htobe32(name);

    if (name > 255) {
        die("the export's name is too long");
    }
    memcpy(msg, &magic, 8);
    memcpy(msg + 8, &option, 4);
    memcpy(msg + 12, &len, 4);
    memcpy(msg + 16, &name_be, 4);
    memcpy(msg + 20, l->export, name);
    memset(msg + 20 + name, 0, 2);
    put(l->fd, msg, 22 + name);
}

static void
handshake(struct load *l)
{
    unsigned char hello[18], reply[20], info[4096];
    uint32_t flags = htobe32(3); /* fixed newstyle, no zeroes */

    get(l->fd, hello, sizeof(hello));
    put(l->fd, &flags, 4);
    put_option_go(l);
    for (;;) {
        uint32_t type, len;

        get(l->fd, reply, sizeof(reply));
        memcpy(&type, reply + 12, 4);
        memcpy(&len, reply + 16, 4);
        type = be32toh(type);
        len = be32toh(len);
        if (len > sizeof(info)) {
            die("the server's reply is too long");
        }
        get(l->fd, info, len);
        if (type == 1) {
            return;
        }
        if (type & 0x80000000) {
            die("the server refused export '%s'", l->export);
        }
        if (type == 3 && len >= 12 && !info[0] && !info[1]) {
            memcpy(&l->size, info + 2, 8);
            l->size = be64toh(l->size);
        }
    }
}

static void
connect_to(struct load *l)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};

    if (strlen(l->socket) >= sizeof(addr.sun_path)) {
        die("the socket's path is too long");
    }
    strcpy(addr.sun_path, l->socket);
    l->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (l->fd < 0 || connect(l->fd, (void *)&addr, sizeof(addr))) {
        die("cannot connect to %s: %s", l->socket, strerror(errno));
    }
    handshake(l);
}

/* The work. */

static volatile sig_atomic_t told_to_stop;

static void
on_sigterm(int sig)
{
    told_to_stop = sig;
}

static uint64_t
next_offset(struct load *l)
{
    uint64_t blocks = l->length / l->block;
    uint64_t index = l->sequential ? l->next++ % blocks : roll(l) % blocks;

    return l->offset + index * l->block;
}

static void
make_request(struct load *l, unsigned slot)
{
    unsigned char *p = l->requests[slot];
    uint32_t magic = htobe32(0x25609513), len = htobe32((uint32_t)l->block);
    uint16_t flags = 0, type = htobe16(l->write);
    uint64_t off = htobe64(next_offset(l)), cookie = slot;

    memcpy(p, &magic, 4);
    memcpy(p + 4, &flags, 2);
    memcpy(p + 6, &type, 2);
    memcpy(p + 8, &cookie, 8);
    memcpy(p + 16, &off, 8);
    memcpy(p + 24, &len, 4);
}

static void
send_all(int fd, struct iovec *iov, int n)
{
    while (n) {
        ssize_t r = writev(fd, iov, n);

        if (r < 0) {
            die("cannot send: %s", strerror(errno));
        }
        while (n && (size_t)r >= iov->iov_len) {
            r -= (ssize_t)iov->iov_len;
            iov++;
            n--;
        }
        if (n) {
            iov->iov_base = (char *)iov->iov_base + r;
            iov->iov_len -= (size_t)r;
        }
    }
}

static void
send_requests(struct load *l, uint64_t now)
{
    struct iovec iov[2 * DEPTH_MAX];
    int n = 0;

    while (l->n_free && (!l->count || l->sent < l->count)) {
        unsigned slot = l->free_slots[--l->n_free];

        make_request(l, slot);
        l->started_ns[slot] = now;
        iov[n++] = (struct iovec){l->requests[slot], REQUEST_SIZE};
        if (l->write) {
            iov[n++] = (struct iovec){l->payload, l->block};
        }
        l->sent++;
    }
    send_all(l->fd, iov, n);
}

/* One reply at @p; returns the bytes of data that follow it. */
static uint64_t
take_reply(struct load *l, const unsigned char *p, uint64_t now)
{
    uint32_t error;
    uint64_t slot;

    memcpy(&error, p + 4, 4);
    memcpy(&slot, p + 8, 8);
    if (memcmp(p, "\x67\x44\x66\x98", 4) || error || slot >= l->depth) {
        die("request failed: error %u", be32toh(error));
    }
    l->free_slots[l->n_free++] = (unsigned)slot;
    if (l->n_samples < SAMPLES_MAX) {
        l->samples[l->n_samples++] = (float)(now - l->started_ns[slot]) / 1000;
    }
    l->done++;
    return l->write ? 0 : l->block;
}

static void
run(struct load *l)
{
    unsigned char *in = malloc(RECEIVE);
    uint64_t skip = 0, now = clock_ns(CLOCK_MONOTONIC);
    uint64_t end = now + (uint64_t)(l->seconds * 1e9);
    size_t have = 0;
    bool stop = false;

    for (unsigned i = 0; i < l->depth; i++) {
        l->free_slots[l->n_free++] = i;
    }
    send_requests(l, now);
    while (l->done < l->sent || skip) {
        ssize_t r = recv(l->fd, in + have, RECEIVE - have, 0);

        if (r <= 0) {
            die("the server closed the connection");
        }
        now = clock_ns(CLOCK_MONOTONIC);
        have += (size_t)r;
        size_t at = 0;

        for (;;) {
            size_t step = have - at < skip ? have - at : (size_t)skip;

            at += step;
            skip -= step;
            if (skip || have - at < REPLY_SIZE) {
                break;
            }
            skip = take_reply(l, in + at, now);
            at += REPLY_SIZE;
        }
        memmove(in, in + at, have - at);
        have -= at;
        stop = stop || told_to_stop || now >= end;
        if (!stop) {
            send_requests(l, now);
        }
    }
    free(in);
}

static int
by_value(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;

    return (x > y) - (x < y);
}

static double
percentile(const struct load *l, double part)
{
    return l->n_samples
               ? (double)l->samples[(size_t)((double)(l->n_samples - 1) * part)]
               : 0;
}

static void
report(struct load *l, double seconds, double cpu_us)
{
    qsort(l->samples, l->n_samples, sizeof(*l->samples), by_value);
    double n = (double)l->done;

    printf("{\"requests\": %llu, \"seconds\": %.3f, \"iops\": %.0f, "
           "\"bytes_per_second\": %.0f, \"p50_us\": %.1f, \"p99_us\": %.1f, "
           "\"max_us\": %.1f, \"cpu_us\": %.2f}\n",
           (unsigned long long)l->done, seconds, n / seconds,
           n * (double)l->block / seconds, percentile(l, 0.5),
           percentile(l, 0.99), percentile(l, 1), n > 0 ? cpu_us / n : 0);
}

static uint64_t
number(const char *name, const char *text)
{
    char *end;
    double v = strtod(text, &end);
    const char *units = "KMGT", *unit = *end ? strchr(units, *end) : NULL;

    if (end == text || v < 0 || (*end && (!unit || end[1]))) {
        die("--%s: '%s' is no number", name, text);
    }
    for (int i = 0; unit && i <= unit - units; i++) {
        v *= 1024;
    }
    return (uint64_t)v;
}

static void
set_option(struct load *l, const char *name, const char *value)
{
    if (!strcmp(name, "socket")) {
        l->socket = value;
    } else if (!strcmp(name, "export")) {
        l->export = value;
    } else if (!strcmp(name, "op")) {
        l->write = !strcmp(value, "write");
    } else if (!strcmp(name, "order")) {
        l->sequential = !strcmp(value, "sequential");
    } else if (!strcmp(name, "block")) {
        l->block = number(name, value);
    } else if (!strcmp(name, "depth")) {
        l->depth = (unsigned)number(name, value);
    } else if (!strcmp(name, "seconds")) {
        l->seconds = atof(value);
    } else if (!strcmp(name, "offset")) {
        l->offset = number(name, value);
    } else if (!strcmp(name, "length")) {
        l->length = number(name, value);
    } else if (!strcmp(name, "count")) {
        l->count = number(name, value);
    } else if (!strcmp(name, "seed")) {
        l->rng += number(name, value) * 0x9E3779B97F4A7C15;
    } else {
        l->pid = (pid_t)number(name, value);
    }
}

static void
parse(struct load *l, int argc, char **argv)
{
    static const struct option options[] = {
        {"socket", 1, NULL, 0}, {"export", 1, NULL, 0}, {"op", 1, NULL, 0},
        {"order", 1, NULL, 0},  {"block", 1, NULL, 0},  {"depth", 1, NULL, 0},
        {"seconds", 1, NULL, 0}, {"offset", 1, NULL, 0}, {"length", 1, NULL, 0},
        {"count", 1, NULL, 0},  {"seed", 1, NULL, 0},   {"pid", 1, NULL, 0},
        {0},
    };
    int index;

    for (int c; (c = getopt_long(argc, argv, "", options, &index)) != -1;) {
        if (c) {
            exit(2);
        }
        set_option(l, options[index].name, optarg);
    }
    if (!l->socket || !l->depth || l->depth > DEPTH_MAX || !l->block ||
        l->block > RECEIVE * 32) {
        die("--socket is needed; --depth is 1 to %d", DEPTH_MAX);
    }
}

int
main(int argc, char **argv)
{
    struct load l = {.export = "",
                     .block = 4096,
                     .depth = 32,
                     .seconds = 3,
                     .rng = 0x2545F4914F6CDD1D};

    parse(&l, argc, argv);
    connect_to(&l);
    if (!l.length) {
        l.length = l.size - l.offset;
    }
    if (l.offset + l.length > l.size || l.length < l.block) {
        die("the range does not lie within the export of %llu bytes",
            (unsigned long long)l.size);
    }
    l.samples = malloc(SAMPLES_MAX * sizeof(*l.samples));
    l.payload = malloc(l.block);
    for (uint64_t i = 0; i < l.block; i++) {
        l.payload[i] = (unsigned char)(roll(&l) | 1);
    }
    signal(SIGTERM, on_sigterm);
    uint64_t cpu = cpu_ns(l.pid), start = clock_ns(CLOCK_MONOTONIC);

    run(&l);
    double seconds = (double)(clock_ns(CLOCK_MONOTONIC) - start) / 1e9;

    report(&l, seconds, (double)(cpu_ns(l.pid) - cpu) / 1e3);
    free(l.samples);
    free(l.payload);
    close(l.fd);
    return 0;
}
