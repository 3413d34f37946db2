// SPDX-License-Identifier: BSD-3-Clause
/* Standard input and output as a stream, for a monitor on a terminal. */
#ifndef SLUICE_DAEMON_STDIO_STREAM_H
#define SLUICE_DAEMON_STDIO_STREAM_H

struct loop;
struct stream;

/*
 * Reads descriptor 0 and writes 1, of any kind; both have O_NONBLOCK until it
 * is closed.  Does not yield.
 */
struct stream *stdio_stream_new(struct loop *loop);

#endif
