/* lmhead_dlpack.h, with the part of DLPack that it needs: which tensors it accepts. */
#include <stdint.h>
#include <stdio.h>

typedef struct {
    int32_t device_type, device_id;
} DLDevice;
typedef struct {
    uint8_t code, bits;
    uint16_t lanes;
} DLDataType;
typedef struct {
    void *data;
    DLDevice device;
    int32_t ndim;
    DLDataType dtype;
    int64_t *shape, *strides;
    uint64_t byte_offset;
} DLTensor;

#include <lmhead_dlpack.h>

static int failed;
#define CHECK(good) ((good) ? (void)0 : (void)(failed = 1, printf("%d: %s\n", __LINE__, #good)))

int main(void) {
    static float memory[64];
    int64_t shape[2] = {5, 4}, strides[2] = {6, 1};
    DLTensor from = {memory, {1, 0}, 2, {2, 32, 1}, shape, strides, 8};
    lmhead_tensor to;
    CHECK(lmhead_tensor_from_dlpack(&from, &to) == 0);
    CHECK(to.data == memory + 2 && to.device_type == LMHEAD_HOST && to.dtype == LMHEAD_F32);
    CHECK(to.rows == 5 && to.columns == 4 && to.stride == 6);
    from.strides = NULL;
    CHECK(lmhead_tensor_from_dlpack(&from, &to) == 0 && to.stride == 0);
    from.strides = strides;
    strides[0] = 0; /* expanded */
    CHECK(lmhead_tensor_from_dlpack(&from, &to) == -1);
    strides[0] = 3; /* rows over each other */
    CHECK(lmhead_tensor_from_dlpack(&from, &to) == -1);
    strides[0] = -4;
    CHECK(lmhead_tensor_from_dlpack(&from, &to) == -1);
    shape[0] = 1; /* of one row nobody looks at it */
    CHECK(lmhead_tensor_from_dlpack(&from, &to) == 0 && to.stride == 0);
    shape[0] = 5, strides[0] = 8, strides[1] = 2; /* transposed */
    CHECK(lmhead_tensor_from_dlpack(&from, &to) == -1);
    strides[1] = 1, from.dtype.lanes = 2;
    CHECK(lmhead_tensor_from_dlpack(&from, &to) == -1);
    from.dtype.lanes = 1, from.ndim = 3;
    CHECK(lmhead_tensor_from_dlpack(&from, &to) == -1);
    return failed;
}
