/* lmhead_dlpack.h: DLPack tensors for lmhead.h, without a call. Include a dlpack.h (1.x) first. */
#ifndef LMHEAD_DLPACK_H
#define LMHEAD_DLPACK_H
#include "lmhead.h"

/* 0, or -1 where the tensor has other than two dimensions, vector lanes, columns that do not lie side by
 * side, or rows that lie over each other. */
static inline int lmhead_tensor_from_dlpack(const DLTensor *from, lmhead_tensor *to) {
    if (from->ndim != 2 || from->dtype.lanes != 1) return -1;
    if (from->strides && from->shape[1] > 1 && from->strides[1] != 1) return -1;
    /* An expanded tensor has the stride 0, which means something else in an lmhead_tensor. */
    if (from->strides && from->shape[0] > 1 && from->strides[0] < from->shape[1]) return -1;
    memset(to, 0, sizeof *to);
    to->data = (char *)from->data + from->byte_offset;
    to->device_type = (int32_t)from->device.device_type;
    to->device_id = from->device.device_id;
    to->dtype = LMHEAD_DTYPE(from->dtype.code, from->dtype.bits);
    to->rows = from->shape[0];
    to->columns = from->shape[1];
    to->stride = from->strides && from->shape[0] > 1 ? from->strides[0] : 0;
    return 0;
}
#endif
