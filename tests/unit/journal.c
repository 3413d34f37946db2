// SPDX-License-Identifier: BSD-3-Clause
/* Journals and intents: what is written is found, what is damaged is not. */
#include "journal/journal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/crc32c.h"
#include "base/mem.h"
#include "journal/intent.h"
#include "run/sim/sim.h"
#include "tap.h"

static struct sim_disk *disk;
static struct loop *loop;
static struct journals journals;

static void
in_world(void (*fn)(void *))
{
    struct sim_options o = {.seed = 1, .in_order = true};

    disk = sim_disk_new();
    struct sim *sim = sim_new(disk, &o);

    loop = sim_loop(sim);
    journals_init(&journals, loop, "state");
    CHECK(loop_run_main(loop, fn, NULL));
    journals_fini(&journals);
    sim_free(sim);
    sim_disk_free(disk);
}

static const struct switch_intent a_to_b = {
    .source = {(char *)"folder/a", 1, 2, (char *)"qed"},
    .target = {(char *)"folder/b", 3, 4, (char *)"qcow2"},
    .delete_source = true,
    .exclusive = true,
    .folders = (char *[]){(char *)"here", (char *)"there"},
    .n_folders = 2,
    .source_session = 77,
};

static enum intent_found
find(const char *image, struct switch_intent *ret)
{
    enum intent_found found = INTENT_NONE;
    auto_err err = ERR_INIT;

    CHECK_INT(intent_find(&journals, image, &found, ret, &err), 0);
    return found;
}

static void
check_life(void *arg)
{
    struct switch_intent got = {0};
    struct intent *i;

    CHECK_INT(find("folder/a", &got), INTENT_NONE);
    CHECK_INT(intent_prepare(&journals, &a_to_b, &i, NULL), 0);
    CHECK_INT(find("folder/a", &got), INTENT_VOID);
    CHECK_INT(find("folder/b", &got), INTENT_VOID);
    CHECK_INT(intent_withdraw(i), 0); /* of nothing */
    CHECK_INT(intent_record(i), 0);
    CHECK_INT(find("folder/a", &got), INTENT_AS_SOURCE);
    CHECK_STR(got.target.path, "folder/b");
    CHECK_STR(got.source.format, "qed");
    CHECK_STR(got.target.format, "qcow2");
    CHECK(got.source.ino == 1 && got.source.born == 2);
    CHECK(got.target.ino == 3 && got.target.born == 4);
    CHECK(got.delete_source && got.exclusive && got.source_session == 77);
    CHECK_INT(got.n_folders, 2);
    CHECK_STR(got.folders[1], "there");
    switch_intent_fini(&got);
    CHECK_INT(find("folder/b", &got), INTENT_AS_TARGET);
    CHECK_STR(got.source.path, "folder/a");
    switch_intent_fini(&got);
    CHECK_INT(intent_withdraw(i), 0);
    CHECK_INT(find("folder/a", &got), INTENT_VOID);
    CHECK_INT(find("folder/b", &got), INTENT_VOID);
    for (int n = 0; n < 5; n++) { /* attempts of one switch */
        CHECK_INT(intent_record(i), 0);
        CHECK_INT(intent_withdraw(i), 0);
    }
    CHECK_INT(intent_record(i), 0);
    CHECK_INT(find("folder/a", &got), INTENT_AS_SOURCE);
    switch_intent_fini(&got);
    intent_end(i, false);
    CHECK_INT(find("folder/a", &got), INTENT_NONE);
    CHECK_INT(find("folder/b", &got), INTENT_NONE);
}

static void
an_intent_is_found_from_both_sides(void)
{
    in_world(check_life);
}

/* Every bit of every byte that was once there for good, or is nothing. */
static void
check_damage(void *arg)
{
    struct switch_intent got = {0};
    unsigned refused = 0;
    struct journal *j;
    struct intent *i;
    size_t len;

    CHECK_INT(journal_share(&journals, "folder/a", &j), 0);
    CHECK_INT(journal_add(j, JOURNAL_JOB, "job", 4), 0);
    CHECK_INT(intent_prepare(&journals, &a_to_b, &i, NULL), 0);
    CHECK_INT(intent_record(i), 0);
    const unsigned char *now = sim_disk_get(disk, "folder/a.sluice", &len);
    auto_free unsigned char *good = xmalloc(len);

    CHECK_INT(len, JOURNAL_SIZE);
    memcpy(good, now, len);
    for (size_t bit = 0; bit < 128 * 8; bit++) {
        auto_free unsigned char *bad = xmalloc(len);
        enum intent_found found = INTENT_NONE;
        auto_err err = ERR_INIT;

        memcpy(bad, good, len);
        bad[bit / 8] ^= (unsigned char)(1u << bit % 8);
        sim_disk_put(disk, "folder/a.sluice", bad, len);
        int r = intent_find(&journals, "folder/a", &found, &got, &err);

        /* What is padding has no sum. */
        CHECK(r == -EUCLEAN || (!r && found == INTENT_AS_SOURCE &&
                                !strcmp(got.target.path, "folder/b")));
        refused += r != 0;
        switch_intent_fini(&got);
    }
    CHECK(refused > 120 * 8);
    sim_disk_put(disk, "folder/a.sluice", good, len);
    intent_end(i, false);
    journal_leave(j);
}

static void
a_damaged_record_is_refused(void)
{
    in_world(check_damage);
}

static bool
is_refused(const char *image)
{
    enum intent_found found;
    struct switch_intent got = {0};
    auto_err err = ERR_INIT;
    int r = intent_find(&journals, image, &found, &got, &err);

    switch_intent_fini(&got);
    CHECK(!r || (r == -EUCLEAN && strstr(err.msg, "damaged")));
    return r;
}

/* One that was cut, or has grown, or has something where nothing can be. */
static void
check_cuts(void *arg)
{
    struct journal *j;
    size_t len;

    CHECK_INT(journal_share(&journals, "a", &j), 0);
    CHECK_INT(journal_add(j, JOURNAL_JOB, "job", 4), 0);
    const unsigned char *now = sim_disk_get(disk, "a.sluice", &len);
    auto_free unsigned char *bytes = xzalloc(2 * len);

    memcpy(bytes, now, len);
    for (size_t cut = 0; cut < len; cut += cut < 64 ? 1 : 512) {
        sim_disk_put(disk, "a.sluice", bytes, cut);
        CHECK(is_refused("a"));
    }
    sim_disk_put(disk, "a.sluice", bytes, len + 1);
    CHECK(is_refused("a"));
    sim_disk_put(disk, "a.sluice", bytes, 2 * len);
    CHECK(is_refused("a"));
    bytes[len - 1] = 1;
    sim_disk_put(disk, "a.sluice", bytes, len);
    CHECK(is_refused("a"));
    /* But not one whose last record was being written, in any order. */
    bytes[len - 1] = 0;
    bytes[56 + 1500] = 1;
    sim_disk_put(disk, "a.sluice", bytes, len);
    CHECK(!is_refused("a"));
    journal_leave(j);
    /* What is left of that is overwritten, and not found behind the next. */
    CHECK_INT(journal_share(&journals, "a", &j), 0);
    CHECK_INT(journal_add(j, JOURNAL_JOB, "job two", 8), 0);
    now = sim_disk_get(disk, "a.sluice", &len);
    CHECK_INT(now[56 + 1500], 0);
    journal_leave(j);
}

static void
a_journal_that_was_cut_is_refused(void)
{
    in_world(check_cuts);
}

static void
check_strangers(void *arg)
{
    static const char text[] = "my notes about sluices";
    struct switch_intent got = {0};
    enum intent_found found;
    auto_err err = ERR_INIT;

    sim_disk_put(disk, "a.sluice", text, sizeof(text));
    CHECK_INT(intent_find(&journals, "a", &found, &got, &err), -EUCLEAN);
    CHECK(strstr(err.hint, "a.sluice"));
}

static void
a_file_that_is_no_journal_is_named(void)
{
    in_world(check_strangers);
}

/* A pointer to another journal than the one that it was made for is none. */
static void
check_uuid(void *arg)
{
    struct switch_intent got = {0};
    struct intent *i;
    size_t len;

    CHECK_INT(intent_prepare(&journals, &a_to_b, &i, NULL), 0);
    CHECK_INT(intent_record(i), 0);
    const unsigned char *now = sim_disk_get(disk, "folder/b.sluice", &len);
    auto_free unsigned char *pointer = xmalloc(len);

    memcpy(pointer, now, len);
    intent_end(i, false);
    CHECK_INT(intent_prepare(&journals, &a_to_b, &i, NULL), 0);
    CHECK_INT(intent_record(i), 0);
    CHECK_INT(find("folder/b", &got), INTENT_AS_TARGET);
    switch_intent_fini(&got);
    sim_disk_put(disk, "folder/b.sluice", pointer, len);
    CHECK_INT(find("folder/b", &got), INTENT_VOID);
    switch_intent_fini(&got);
    intent_end(i, false);
}

static void
a_pointer_is_to_one_journal(void)
{
    in_world(check_uuid);
}

static unsigned
count_records(const char *image)
{
    struct journal_record record;
    struct journal *j;
    uint32_t pos = 0;
    unsigned n = 0;

    CHECK_INT(journal_open(&journals, image, &j), 0);
    while (journal_next(j, &pos, &record)) {
        n++;
    }
    journal_close(j);
    return n;
}

static void
add_job(struct journal *j, const char *id, enum journal_type type, size_t len)
{
    auto_free char *payload = xzalloc(len);

    snprintf(payload, len, "%s", id);
    CHECK_INT(journal_add(j, type, payload, (uint32_t)len), 0);
}

/* What counts is there, however often the file was too small for all. */
static void
check_sharing(void *arg)
{
    struct switch_intent got = {0};
    struct journal *j, *same;
    struct intent *i;

    CHECK_INT(journal_share(&journals, "folder/a", &j), 0);
    CHECK_INT(journal_share(&journals, "folder/a", &same), 0);
    CHECK(j == same);
    journal_leave(same);
    add_job(j, "one", JOURNAL_JOB, 100);
    CHECK_INT(intent_prepare(&journals, &a_to_b, &i, NULL), 0);
    CHECK_INT(intent_record(i), 0);
    for (unsigned n = 0; n < 3 * JOURNAL_SIZE / 400; n++) {
        add_job(j, "two", JOURNAL_JOB, 400);
        add_job(j, "two", JOURNAL_JOB_ENDED, 4);
    }
    add_job(j, "three", JOURNAL_JOB, 10);
    CHECK_INT(count_records("folder/a"), 3);
    CHECK_INT(find("folder/a", &got), INTENT_AS_SOURCE);
    switch_intent_fini(&got);
    CHECK_INT(find("folder/b", &got), INTENT_AS_TARGET);
    switch_intent_fini(&got);
    /* Others are left in peace by what ends. */
    intent_end(i, false);
    CHECK_INT(find("folder/a", &got), INTENT_VOID);
    CHECK_INT(find("folder/b", &got), INTENT_NONE);
    journal_leave(j);
    CHECK_INT(count_records("folder/a"), 2);
    CHECK_INT(journal_share(&journals, "folder/a", &j), 0);
    add_job(j, "one", JOURNAL_JOB_ENDED, 4);
    add_job(j, "three", JOURNAL_JOB_ENDED, 6);
    journal_leave(j);
    CHECK_INT(find("folder/a", &got), INTENT_NONE);
}

static void
a_journal_is_shared_and_stays_small(void)
{
    in_world(check_sharing);
}

/*
 * Things that all count make it longer, as far as it goes; and then there is
 * still room to end each of them on a disk that has none.
 */
static void
check_full(void *arg)
{
    auto_free char *payload = xzalloc(1024);
    struct journal *j;
    int r = 0, n;
    size_t len;

    CHECK_INT(journal_share(&journals, "a", &j), 0);
    for (n = 0; !r; n++) {
        snprintf(payload, 1024, "%d", n);
        r = journal_add(j, JOURNAL_JOB, payload, 1024);
    }
    CHECK_INT(r, -ENOSPC);
    CHECK(n > JOURNAL_SIZE_MAX / (1024 + 16) * 9 / 10);
    CHECK_INT(count_records("a"), (unsigned)n - 1);
    sim_disk_get(disk, "a.sluice", &len);
    CHECK_INT(len, JOURNAL_SIZE_MAX);
    sim_disk_set_capacity(disk, sim_disk_used(disk));
    for (int k = 0; k < n - 1; k++) {
        snprintf(payload, 1024, "%d", k);
        CHECK_INT(journal_add(j, JOURNAL_JOB_ENDED, payload,
                              (uint32_t)strlen(payload) + 1),
                  0);
    }
    CHECK_INT(count_records("a"), 0);
    journal_leave(j);
    CHECK(!sim_disk_has(disk, "a.sluice"));
}

static void
a_full_journal_says_so(void)
{
    in_world(check_full);
}

/* A name that leaves no room for seven bytes more. */
static void
check_long_name(void *arg)
{
    char name[256] = "";
    struct journal *j;

    memset(name, 'n', 250);
    sim_disk_put(disk, name, "image", 5);
    CHECK_INT(journal_open(&journals, name, &j), -ENOENT);
    CHECK_INT(journal_share(&journals, name, &j), 0);
    CHECK(strstr(journal_file(j), "state/inode-"));
    add_job(j, "one", JOURNAL_JOB, 4);
    journal_leave(j);
    CHECK_INT(count_records(name), 1);
}

static void
an_image_with_a_long_name_has_a_journal(void)
{
    in_world(check_long_name);
}

static void
the_sum_is_crc32c(void)
{
    unsigned char zeroes[32] = {0}, ones[32];

    memset(ones, 0xff, sizeof(ones));
    /* RFC 3720, B.4 */
    CHECK_INT(crc32c(zeroes, 32), 0x8a9136aa);
    CHECK_INT(crc32c(ones, 32), 0x62a8ab43);
}

int
main(void)
{
    tap_run("the sum is CRC-32C", the_sum_is_crc32c);
    tap_run("an intent is found from both sides",
            an_intent_is_found_from_both_sides);
    tap_run("a damaged record is refused", a_damaged_record_is_refused);
    tap_run("a journal that was cut is refused",
            a_journal_that_was_cut_is_refused);
    tap_run("a pointer is to one journal", a_pointer_is_to_one_journal);
    tap_run("a file that is no journal is named",
            a_file_that_is_no_journal_is_named);
    tap_run("a journal is shared, and stays small",
            a_journal_is_shared_and_stays_small);
    tap_run("a full journal says so", a_full_journal_says_so);
    tap_run("an image with a long name has a journal",
            an_image_with_a_long_name_has_a_journal);
    return tap_done();
}
