/* An engine's program: it links, runs a step, and gets a message for a mistake. With OTHER_RUST it also calls
 * another Rust library, in which a panic is caught. With an argument it computes on GPU 0. C99 to C++20. */
#include <lmhead.h>
#include <stdio.h>
#include <stdlib.h>

#ifdef OTHER_RUST
#ifdef __cplusplus
extern "C"
#endif
int other_rust_catches_a_panic(int number);
#endif

#define CHECK(call)                                                                              \
    do {                                                                                         \
        if ((call) != LMHEAD_OK) {                                                               \
            fprintf(stderr, "%s: %s\n", #call, lmhead_last_error());                             \
            exit(1);                                                                             \
        }                                                                                        \
    } while (0)

/* The high half of a float: exact for these numbers. */
static uint16_t bf16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (uint16_t)(bits >> 16);
}

int main(int n, char **arguments) {
    static uint16_t weights[65][16], hidden[2][16];
    lmhead_backend_config open = lmhead_backend_config_init();
    lmhead_weights_config wrapped = lmhead_weights_config_init();
    lmhead_config config = lmhead_config_init();
    lmhead_step step = lmhead_step_init();
    lmhead_answer answer = lmhead_answer_init();
    lmhead_backend *backend;
    lmhead_weights *shard;
    lmhead_head *head;
    uint8_t status[2];
    int64_t ids[2];
    int i;
    (void)arguments;
    if (lmhead_abi() != LMHEAD_ABI) return 1;
    for (i = 0; i < 65; i++) weights[i][i % 4] = bf16((float)i);
    hidden[0][0] = bf16(1);  /* ids 0, 4 .. 64: the largest is 64 */
    hidden[1][3] = bf16(-1); /* ids 3, 7 .. 63: all others are 0, the lowest of which is 0 */
    open.threads = 2;
    if (n > 1) open.device_type = LMHEAD_CUDA;
    CHECK(lmhead_backend_open(&open, &backend));
    wrapped.vocab_size = 65;
    wrapped.matrix.data = weights;
    wrapped.matrix.device_type = LMHEAD_HOST;
    wrapped.matrix.dtype = LMHEAD_BF16;
    wrapped.matrix.rows = 65;
    wrapped.matrix.columns = 16;
    CHECK(lmhead_weights_wrap(&wrapped, &shard));
    config.vocab_size = 65;
    config.hidden_size = 16;
    CHECK(lmhead_create(&config, NULL, shard, NULL, backend, &head));
    step.request = LMHEAD_ARGMAX;
    step.rows = 2;
    step.hidden = wrapped.matrix;
    step.hidden.data = hidden;
    step.hidden.rows = 2;
    answer.row_status = status;
    answer.ids = ids;
#ifdef OTHER_RUST
    if (other_rust_catches_a_panic(7) != -7) return 1;
#endif
    CHECK(lmhead_run(head, &step, &answer));
    step.request = 99;
    if (lmhead_run(head, &step, &answer) != LMHEAD_ERROR_ARGUMENT) return 1;
    printf("%d %d; %s\n", (int)ids[0], (int)ids[1], lmhead_last_error());
    lmhead_free(head);
    lmhead_weights_free(shard);
    lmhead_backend_free(backend);
    return ids[0] == 64 && ids[1] == 0 ? 0 : 1;
}
