/* engine.c: an engine of four ranks, threads of one process, that share one LM head.
 *
 *   cc -std=c11 examples/engine.c $(pkg-config --cflags --libs lmhead) -lpthread -o engine && ./engine
 *
 * Every rank serves its own sequences: in every step it samples a token for each of them, and it has fewer
 * rows as they end. A rank whose sequences have all ended is idle, and takes part in the steps like the
 * others. The engine runs over the library's exchange between threads and over a transport of its own, in
 * each of the three modes of row counts; the tokens must be those of one rank with the whole head. Finally a
 * rank does not come, and the others must get an error that names it.
 *
 * The model is replaced by a function of the last token and its position, so that tokens can be compared. */
#define _POSIX_C_SOURCE 200809L
#include <errno.h>
#include <lmhead.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { RANKS = 4, VOCAB = 1000, HIDDEN = 64, SEQUENCES = 3, STEPS = 12, BEST = 5 };

static void check(lmhead_status status, const char *what) {
    if (status == LMHEAD_OK) return;
    fprintf(stderr, "%s: %s: %s\n", what, lmhead_status_name(status), lmhead_last_error());
    exit(1);
}
#define CHECK(call) check(call, #call)

static void need(int good, const char *what) {
    if (good) return;
    fprintf(stderr, "wanted %s\n", what);
    exit(1);
}

/* ---- the "model" ---- */

static float weights[VOCAB][HIDDEN];

static float number(uint64_t of) { /* in [-1, 1) */
    of = (of ^ of >> 31) * 0x9e3779b97f4a7c15u;
    of = (of ^ of >> 29) * 0xbf58476d1ce4e5b9u;
    return (float)(of >> 40) / 8388608.0f - 1.0f;
}

static void hidden_row(int64_t token, int64_t position, float row[HIDDEN]) {
    const int64_t first = (token * STEPS + position) * HIDDEN + 12345;
    for (int i = 0; i < HIDDEN; i++) row[i] = number((uint64_t)(first + i));
}

/* The number of steps of a sequence: ranks are uneven, and rank 2 is idle from step 4 on. */
static int lifetime(int rank, int sequence) {
    if (rank == 2) return 4;
    return STEPS - (rank + 2 * sequence) % 5;
}

static int64_t rows_of(int rank, int step) {
    int64_t rows = 0;
    for (int s = 0; s < SEQUENCES; s++) rows += step < lifetime(rank, s);
    return rows;
}

/* ---- a transport of the engine's own: threads that meet in a room ---- */

typedef struct room {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    const lmhead_piece *sent[RANKS]; /* of the collective under way */
    int came, left;                  /* how many have brought their pieces, and have taken what is theirs */
    uint64_t round;
    int broken;                     /* somebody has gone: what he sent must not be looked at */
    char notice[LMHEAD_TEXT_BYTES]; /* why a member gave up, "" where none has */
    int who;
} room;

typedef struct seat {
    room *in;
    int me;
} seat;

/* Waits for a change, until the deadline; 0 after it. */
static int wait_in(room *in, const struct timespec *deadline) {
    return pthread_cond_timedwait(&in->changed, &in->lock, deadline) != ETIMEDOUT;
}

static struct timespec deadline_of(const lmhead_call *call) {
    struct timespec at;
    clock_gettime(CLOCK_REALTIME, &at);
    at.tv_sec += (time_t)(call->left_us / 1000000);
    at.tv_nsec += (long)(call->left_us % 1000000) * 1000;
    if (at.tv_nsec >= 1000000000) at.tv_sec++, at.tv_nsec -= 1000000000;
    return at;
}

/* Fails the caller's step if a member has given up, with that member's notice; else 0. */
static int32_t notice_of(room *in, lmhead_call *call) {
    if (!in->notice[0]) return LMHEAD_FAULT_NONE;
    memcpy(call->text, in->notice, sizeof in->notice);
    return call->peers[in->who].status = LMHEAD_FAULT_ABORTED;
}

/* As notice_of, if the present collective is broken and the others' memory must not be read any more. */
static int32_t broken(room *in, lmhead_call *call) {
    if (!in->broken) return LMHEAD_FAULT_NONE;
    if (in->notice[0]) return notice_of(in, call);
    snprintf(call->text, LMHEAD_TEXT_BYTES, "a member has given up an exchange that others are in");
    return LMHEAD_FAULT_BROKEN;
}

static int32_t missing(room *in, lmhead_call *call) {
    for (int m = 0; m < RANKS; m++)
        if (!in->sent[m]) call->peers[m].status = LMHEAD_FAULT_TIMEOUT;
    return LMHEAD_FAULT_TIMEOUT;
}

/* The collective takes place for all members or for none: it begins when the last one has come, and a
 * member's memory is read until all have copied from it. */
static int32_t all_to_all(void *user, lmhead_call *call, const lmhead_piece *send, const lmhead_piece *recv) {
    seat *own = user;
    room *in = own->in;
    const struct timespec deadline = deadline_of(call);
    pthread_mutex_lock(&in->lock);
    const uint64_t round = in->round;
    int32_t fault = broken(in, call);
    if (!fault) {
        in->sent[own->me] = send;
        if (++in->came == RANKS) pthread_cond_broadcast(&in->changed);
    }
    while (in->came < RANKS && !fault)
        if (!(fault = notice_of(in, call)) && !wait_in(in, &deadline)) fault = missing(in, call);
    if (!fault) fault = broken(in, call);
    int32_t length = LMHEAD_FAULT_NONE;
    for (int m = 0; m < RANKS && !fault; m++) {
        const lmhead_piece from = in->sent[m][own->me], to = recv[m];
        if (from.bytes != to.bytes) {
            length = call->peers[m].status = LMHEAD_FAULT_LENGTH;
            call->peers[m].bytes = from.bytes;
        }
        if (to.bytes && from.bytes) memcpy(to.data, from.data, from.bytes < to.bytes ? from.bytes : to.bytes);
    }
    if (!fault && ++in->left == RANKS) {
        memset(in->sent, 0, sizeof in->sent);
        in->came = in->left = 0;
        in->round++;
        pthread_cond_broadcast(&in->changed);
    }
    while (!fault && in->round == round)
        if (!(fault = broken(in, call)) && !wait_in(in, &deadline)) fault = LMHEAD_FAULT_TIMEOUT;
    if (fault) {
        in->broken = 1;
        pthread_cond_broadcast(&in->changed);
    }
    pthread_mutex_unlock(&in->lock);
    return fault ? fault : length;
}

static void notify_abort(void *user, const lmhead_call *call, const char *notice) {
    seat *own = user;
    (void)call;
    pthread_mutex_lock(&own->in->lock);
    if (!own->in->notice[0]) {
        snprintf(own->in->notice, sizeof own->in->notice, "%s", notice);
        own->in->who = own->me;
    }
    pthread_cond_broadcast(&own->in->changed);
    pthread_mutex_unlock(&own->in->lock);
}

/* ---- one rank ---- */

typedef struct rank {
    int me, ranks; /* ranks = 1: the whole head, for all sequences of all ranks one after the other */
    int32_t mode;
    lmhead_exchange *exchange;
    lmhead_backend *backend;
    int64_t tokens[SEQUENCES][STEPS];
    int64_t best[BEST];
} rank;

static lmhead_head *make_head(const rank *own, uint32_t timeout_ms) {
    lmhead_weights_config wrapped = lmhead_weights_config_init();
    int64_t first, count;
    CHECK(lmhead_shard_range(VOCAB, own->ranks, own->ranks == 1 ? 0 : own->me, &first, &count));
    wrapped.vocab_size = VOCAB;
    wrapped.first = first;
    wrapped.matrix =
        (lmhead_tensor){.data = weights[first], .dtype = LMHEAD_F32, .rows = count, .columns = HIDDEN};
    lmhead_weights *shard;
    CHECK(lmhead_weights_wrap(&wrapped, &shard));

    lmhead_config config = lmhead_config_init();
    config.vocab_size = VOCAB;
    config.hidden_size = HIDDEN;
    config.timeout_ms = timeout_ms;
    const int64_t members[RANKS] = {0, 1, 2, 3};
    const lmhead_group group = {.ranks = members, .n = RANKS, .rank = own->me, .tp = 1};
    lmhead_head *head;
    CHECK(lmhead_create(&config, own->ranks == 1 ? NULL : &group, shard, own->exchange, own->backend, &head));
    lmhead_weights_free(shard); /* the head keeps what it needs */
    return head;
}

/* Sets the row counts of the step, in the rank's mode. */
static void set_counts(const rank *own, int step, lmhead_step *to, int64_t counts[RANKS]) {
    to->mode = own->mode;
    to->capacity = own->mode == LMHEAD_ROWS_EXACT ? 0 : SEQUENCES;
    for (int r = 0; r < RANKS; r++) counts[r] = rows_of(r, step);
    to->counts = own->ranks == 1 ? NULL : counts;
}

static void *serve(void *argument) {
    rank *own = argument;
    lmhead_head *head = make_head(own, 20000);
    int64_t last[SEQUENCES], counts[RANKS], ids[SEQUENCES * BEST], positions[SEQUENCES];
    float hidden[SEQUENCES][HIDDEN], logprobs[SEQUENCES], values[SEQUENCES * BEST], sums[SEQUENCES];
    const float temperature[SEQUENCES] = {0.8f, 0.0f, 1.2f}, top_p[SEQUENCES] = {0.9f, 1.0f, 0.95f};
    float temperatures[SEQUENCES], nuclei[SEQUENCES];
    uint64_t seeds[SEQUENCES];
    int64_t ranks_of[SEQUENCES];
    uint8_t status[SEQUENCES];
    for (int s = 0; s < SEQUENCES; s++) last[s] = own->me * SEQUENCES + s;

    lmhead_step step = lmhead_step_init();
    step.hidden = (lmhead_tensor){.data = hidden, .dtype = LMHEAD_F32, .rows = SEQUENCES, .columns = HIDDEN};
    lmhead_step kinds[2] = {step, step};
    for (int i = 0; i < 2; i++) kinds[i].mode = LMHEAD_ROWS_CAPACITY, kinds[i].capacity = SEQUENCES;
    kinds[0].request = LMHEAD_SAMPLE;
    kinds[0].flags = LMHEAD_WITH_LOGPROBS;
    kinds[1].request = LMHEAD_TOPK;
    kinds[1].k = BEST;
    CHECK(lmhead_prepare(head, kinds, 2)); /* from here on steps allocate nothing */

    lmhead_sampling sampling = {
        .seed = seeds, .position = positions, .temperature = temperatures, .top_p = nuclei};
    lmhead_answer answer = lmhead_answer_init();
    answer.row_status = status;
    answer.ids = ids;
    answer.logprobs = logprobs;
    answer.ranks = ranks_of;
    answer.values = values;
    answer.logsumexp = sums;
    for (int at = 0; at < STEPS; at++) {
        int row = 0, sequence_of[SEQUENCES];
        for (int s = 0; s < SEQUENCES; s++) {
            if (at >= lifetime(own->me, s)) continue;
            hidden_row(last[s], at, hidden[row]);
            seeds[row] = (uint64_t)(own->me * SEQUENCES + s);
            positions[row] = at;
            temperatures[row] = temperature[s];
            nuclei[row] = top_p[s];
            sequence_of[row++] = s;
        }
        step = kinds[0];
        step.rows = row;
        step.sampling = &sampling;
        set_counts(own, at, &step, counts);
        CHECK(lmhead_run(head, &step, &answer));
        for (int i = 0; i < row; i++) {
            need(status[i] == LMHEAD_ROW_GOOD && logprobs[i] <= 0, "a good row with its logprob");
            last[sequence_of[i]] = own->tokens[sequence_of[i]][at] = ids[i];
        }
    }
    /* The best next tokens of each rank's first sequence. */
    hidden_row(last[0], STEPS, hidden[0]);
    step = kinds[1];
    step.rows = 1;
    step.mode = own->mode;
    for (int r = 0; r < RANKS; r++) counts[r] = 1;
    step.capacity = own->mode == LMHEAD_ROWS_EXACT ? 0 : SEQUENCES;
    step.counts = own->ranks == 1 ? NULL : counts;
    CHECK(lmhead_run(head, &step, &answer));
    memcpy(own->best, ids, sizeof own->best);
    lmhead_free(head);
    return NULL;
}

/* A step that the last rank joins too late. */
static void *miss(void *argument) {
    enum { LATE = RANKS - 1, DEADLINE_MS = 300 };
    rank *own = argument;
    lmhead_head *head = make_head(own, DEADLINE_MS);
    const int64_t counts[RANKS] = {1, 1, 1, 1};
    float hidden[HIDDEN];
    int64_t id, named[RANKS];
    uint8_t status;
    hidden_row(own->me, 0, hidden);
    lmhead_step step = lmhead_step_init();
    step.request = LMHEAD_ARGMAX;
    step.rows = 1;
    step.counts = counts;
    step.hidden = (lmhead_tensor){.data = hidden, .dtype = LMHEAD_F32, .rows = 1, .columns = HIDDEN};
    lmhead_answer answer = lmhead_answer_init();
    answer.row_status = &status;
    answer.ids = &id;
    if (own->me == LATE) nanosleep(&(struct timespec){.tv_nsec = 600 * 1000000}, NULL);
    const lmhead_status ran = lmhead_run(head, &step, &answer);
    if (own->me == LATE) {
        need(ran != LMHEAD_OK, "no answer for a rank that comes too late");
    } else {
        need(ran == LMHEAD_ERROR_TIMEOUT, "a timeout where a rank does not come");
        const size_t n = lmhead_last_error_ranks(named, RANKS);
        need(n == 1 && named[0] == LATE, "the name of the rank that is late");
    }
    lmhead_free(head);
    return NULL;
}

/* ---- all of them ---- */

static void run_group(lmhead_backend *backend, lmhead_exchange *const endpoints[RANKS], int32_t mode,
                      void *(*run)(void *), rank ranks[RANKS]) {
    pthread_t threads[RANKS];
    memset(ranks, 0, RANKS * sizeof *ranks);
    for (int r = 0; r < RANKS; r++) {
        ranks[r] = (rank){.me = r, .ranks = RANKS, .mode = mode, .backend = backend};
        ranks[r].exchange = endpoints[r];
        need(pthread_create(&threads[r], NULL, run, &ranks[r]) == 0, "a thread for each rank");
    }
    for (int r = 0; r < RANKS; r++) pthread_join(threads[r], NULL);
}

int main(void) {
    if (lmhead_abi() != LMHEAD_ABI) return fprintf(stderr, "this program is of another ABI\n"), 1;
    for (int v = 0; v < VOCAB; v++)
        for (int i = 0; i < HIDDEN; i++) weights[v][i] = number((uint64_t)(v * HIDDEN + i));
    lmhead_backend_config opened = lmhead_backend_config_init();
    lmhead_backend *backend;
    CHECK(lmhead_backend_open(&opened, &backend));

    rank alone[RANKS], shared[RANKS];
    memset(alone, 0, sizeof alone);
    for (int r = 0; r < RANKS; r++) {
        alone[r] = (rank){.me = r, .ranks = 1, .mode = LMHEAD_ROWS_EXACT, .backend = backend};
        serve(&alone[r]);
    }
    const char *const modes[] = {"exact", "capacity", "discover", "a late rank"};
    for (int transport = 0; transport < 2; transport++) {
        for (int32_t mode = LMHEAD_ROWS_EXACT; mode <= LMHEAD_ROWS_DISCOVER + 1; mode++) {
            const int late = mode > LMHEAD_ROWS_DISCOVER;
            lmhead_exchange *endpoints[RANKS];
            room meeting;
            seat seats[RANKS];
            memset(&meeting, 0, sizeof meeting);
            pthread_mutex_init(&meeting.lock, NULL);
            pthread_cond_init(&meeting.changed, NULL);
            if (transport == 0) CHECK(lmhead_exchange_local(RANKS, endpoints));
            for (int r = 0; r < RANKS && transport == 1; r++) {
                seats[r] = (seat){&meeting, r};
                lmhead_transport functions = lmhead_transport_init();
                functions.n = RANKS;
                functions.me = r;
                functions.all_to_all = all_to_all;
                functions.notify_abort = notify_abort;
                CHECK(lmhead_exchange_callbacks(&functions, &seats[r], &endpoints[r]));
            }
            run_group(backend, endpoints, late ? LMHEAD_ROWS_EXACT : mode, late ? miss : serve, shared);
            for (int r = 0; r < RANKS; r++) {
                const size_t tokens = sizeof shared[r].tokens, best = sizeof shared[r].best;
                const rank *got = &shared[r], *want = &alone[r];
                need(late || !memcmp(got->tokens, want->tokens, tokens), "the tokens of one rank alone");
                need(late || !memcmp(got->best, want->best, best), "the best of one rank alone");
                lmhead_exchange_free(endpoints[r]);
            }
            pthread_cond_destroy(&meeting.changed);
            pthread_mutex_destroy(&meeting.lock);
            printf("%-9s %-11s %d ranks: %s\n", transport ? "callbacks" : "local", modes[mode], RANKS,
                   late ? "named on the others" : "the tokens of one rank alone");
        }
    }
    lmhead_backend_free(backend);
    printf("rank 0: ");
    for (int at = 0; at < STEPS; at++) printf("%lld ", (long long)alone[0].tokens[0][at]);
    printf("\n");
    return 0;
}
