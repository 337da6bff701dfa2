"""The C interface by ctypes. scripts/python-bindings writes it from include/lmhead.h."""
# fmt: off
# ruff: noqa

from ctypes import (CFUNCTYPE, POINTER, Structure, c_char, c_char_p, c_float, c_int32, c_int64, c_size_t,
    c_uint32, c_uint64, c_uint8, c_void_p, sizeof)

LMHEAD_VERSION_MAJOR = 0
LMHEAD_VERSION_MINOR = 1
LMHEAD_VERSION_PATCH = 0
LMHEAD_ABI = 0
LMHEAD_TEXT_BYTES = 512
LMHEAD_OK = 0
LMHEAD_ERROR_CONFIG = 1
LMHEAD_ERROR_SHAPE = 2
LMHEAD_ERROR_DTYPE = 3
LMHEAD_ERROR_INDEX = 4
LMHEAD_ERROR_REQUEST = 5
LMHEAD_ERROR_FILE = 6
LMHEAD_ERROR_TENSOR = 7
LMHEAD_ERROR_STEP_MISMATCH = 8
LMHEAD_ERROR_TIMEOUT = 9
LMHEAD_ERROR_RANK_LOST = 10
LMHEAD_ERROR_POISONED = 11
LMHEAD_ERROR_EXCHANGE = 12
LMHEAD_ERROR_UNSUPPORTED = 13
LMHEAD_ERROR_DEVICE = 14
LMHEAD_ERROR_ARGUMENT = 15
LMHEAD_ERROR_INTERNAL = 16
LMHEAD_F32 = 73730
LMHEAD_F16 = 69634
LMHEAD_BF16 = 69636
LMHEAD_I8 = 67584
LMHEAD_E4M3 = 67594
LMHEAD_I32 = 73728
LMHEAD_I64 = 81920
LMHEAD_HOST = 1
LMHEAD_CUDA = 2
LMHEAD_CUDA_PINNED = 3
LMHEAD_ORDER_DP_PP_TP = 0
LMHEAD_ORDER_PP_DP_TP = 1
LMHEAD_TP_SIZE_TENSOR_PARALLEL = -1
LMHEAD_TP_SIZE_AUTO = 0
LMHEAD_QUANT_AS_STORED = 0
LMHEAD_QUANT_NONE = 1
LMHEAD_QUANT_W8A8 = 2
LMHEAD_QUANT_W8A16 = 3
LMHEAD_FAULT_NONE = 0
LMHEAD_FAULT_TIMEOUT = 1
LMHEAD_FAULT_LOST = 2
LMHEAD_FAULT_BROKEN = 3
LMHEAD_FAULT_ABORTED = 4
LMHEAD_FAULT_LENGTH = 5
LMHEAD_FAULT_OTHER_CALL = 6
LMHEAD_VERIFY_DEFAULT = 0
LMHEAD_VERIFY_ALWAYS = 1
LMHEAD_VERIFY_PREPARE = 2
LMHEAD_VERIFY_EVERY = 3
LMHEAD_ROWS_EXACT = 0
LMHEAD_ROWS_CAPACITY = 1
LMHEAD_ROWS_DISCOVER = 2
LMHEAD_LOGITS = 1
LMHEAD_ARGMAX = 2
LMHEAD_TOPK = 3
LMHEAD_LOGPROBS = 4
LMHEAD_SAMPLE = 5
LMHEAD_ADJUSTED = 1
LMHEAD_PROCESSED = 2
LMHEAD_WITH_LOGPROBS = 4
LMHEAD_DEVICE_MASKS = 8
LMHEAD_UNFILTERED = 16
LMHEAD_DEVICE_FILTERS = 32
LMHEAD_ASYNCHRONOUS = 64
LMHEAD_DEVICE_TARGETS = 1
LMHEAD_DEVICE_SAMPLING = 2
LMHEAD_DEVICE_ADJUSTMENTS = 4
LMHEAD_ROW_GOOD = 0
LMHEAD_ROW_NONFINITE = 1
LMHEAD_ROW_NOTHING_ALLOWED = 2
LMHEAD_ROW_BAD_INPUT = 3


class lmhead_tensor(Structure):
    _fields_ = [
        ("data", c_void_p),
        ("device_type", c_int32),
        ("device_id", c_int32),
        ("dtype", c_uint32),
        ("reserved", c_uint32),
        ("rows", c_int64),
        ("columns", c_int64),
        ("stride", c_int64),
    ]


class lmhead_backend_config(Structure):
    def __init__(self, **fields):
        super().__init__(size=sizeof(lmhead_backend_config), **fields)

    _fields_ = [
        ("size", c_size_t),
        ("device_type", c_int32),
        ("device_id", c_int32),
        ("threads", c_int32),
    ]


class lmhead_load(Structure):
    def __init__(self, **fields):
        super().__init__(size=sizeof(lmhead_load), **fields)

    _fields_ = [
        ("size", c_size_t),
        ("tensor", c_char_p),
        ("vocab_size", c_int64),
        ("members", c_int64),
        ("member", c_int64),
        ("quantization", c_int32),
        ("without_bias", c_int32),
        ("version", c_uint64),
        ("progress", CFUNCTYPE(None, c_void_p, c_uint64, c_uint64)),
        ("user", c_void_p),
        ("copy", c_int32),
    ]


class lmhead_weights_config(Structure):
    def __init__(self, **fields):
        super().__init__(size=sizeof(lmhead_weights_config), **fields)

    _fields_ = [
        ("size", c_size_t),
        ("vocab_size", c_int64),
        ("first", c_int64),
        ("matrix", lmhead_tensor),
        ("scales", c_void_p),
        ("n_scales", c_int64),
        ("bias", c_void_p),
        ("quantization", c_int32),
        ("version", c_uint64),
        ("release", CFUNCTYPE(None, c_void_p)),
        ("user", c_void_p),
    ]


class lmhead_weights_info(Structure):
    def __init__(self, **fields):
        super().__init__(size=sizeof(lmhead_weights_info), **fields)

    _fields_ = [
        ("size", c_size_t),
        ("vocab_size", c_int64),
        ("hidden_size", c_int64),
        ("first", c_int64),
        ("count", c_int64),
        ("dtype", c_uint32),
        ("quantization", c_int32),
        ("has_bias", c_int32),
        ("bytes", c_uint64),
    ]


class lmhead_piece(Structure):
    _fields_ = [
        ("data", c_void_p),
        ("bytes", c_size_t),
    ]


class lmhead_peer(Structure):
    _fields_ = [
        ("status", c_int32),
        ("reserved", c_uint32),
        ("bytes", c_uint64),
    ]


class lmhead_call(Structure):
    _fields_ = [
        ("head", c_uint32),
        ("instance", c_uint32),
        ("epoch", c_uint32),
        ("operation", c_int32),
        ("step", c_uint64),
        ("terms", c_uint64),
        ("left_us", c_uint64),
        ("stream", c_void_p),
        ("peers", POINTER(lmhead_peer)),
        ("text", c_void_p),
    ]


class lmhead_place(Structure):
    _fields_ = [
        ("head", c_uint32),
        ("instance", c_uint32),
        ("epoch", c_uint32),
        ("operation", c_int32),
        ("step", c_uint64),
        ("age_us", c_uint64),
    ]


class lmhead_transport(Structure):
    def __init__(self, **fields):
        super().__init__(size=sizeof(lmhead_transport), **fields)

    _fields_ = [
        ("size", c_size_t),
        ("n", c_int64),
        ("me", c_int64),
        ("all_to_all", CFUNCTYPE(c_int32, c_void_p, POINTER(lmhead_call), POINTER(lmhead_piece),
            POINTER(lmhead_piece))),
        ("all_gather", CFUNCTYPE(c_int32, c_void_p, POINTER(lmhead_call), c_void_p, c_int64,
            POINTER(lmhead_piece), POINTER(lmhead_piece))),
        ("notify_abort", CFUNCTYPE(None, c_void_p, POINTER(lmhead_call), c_char_p)),
        ("note", CFUNCTYPE(None, c_void_p, POINTER(lmhead_call))),
        ("place", CFUNCTYPE(c_int32, c_void_p, c_int64, POINTER(lmhead_place))),
        ("reset", CFUNCTYPE(c_int32, c_void_p, POINTER(lmhead_call))),
        ("pending", CFUNCTYPE(c_int32, c_void_p, POINTER(lmhead_call))),
        ("leave", CFUNCTYPE(None, c_void_p, c_uint32, c_uint32)),
        ("release", CFUNCTYPE(None, c_void_p)),
        ("device", c_void_p),
        ("control", c_void_p),
    ]


class lmhead_config(Structure):
    def __init__(self, **fields):
        super().__init__(size=sizeof(lmhead_config), **fields)

    _fields_ = [
        ("size", c_size_t),
        ("name", c_char * 32),
        ("vocab_size", c_int64),
        ("hidden_size", c_int64),
        ("hidden_dtype", c_uint32),
        ("logit_scale", c_float),
        ("softcap", c_float),
        ("split_rows_over_tp", c_int32),
        ("verify", c_int32),
        ("verify_every", c_uint32),
        ("timeout_ms", c_uint32),
        ("create_timeout_ms", c_uint32),
        ("logprobs_chunk_bytes", c_uint64),
    ]


class lmhead_group(Structure):
    _fields_ = [
        ("ranks", c_void_p),
        ("n", c_int64),
        ("rank", c_int64),
        ("tp", c_int64),
        ("tp_index", c_int64),
    ]


class lmhead_sampling(Structure):
    _fields_ = [
        ("seed", c_void_p),
        ("position", c_void_p),
        ("temperature", c_void_p),
        ("top_k", c_void_p),
        ("top_p", c_void_p),
        ("min_p", c_void_p),
    ]


class lmhead_adjustments(Structure):
    _fields_ = [
        ("allowed", c_void_p),
        ("logit_bias_offsets", c_void_p),
        ("logit_bias_ids", c_void_p),
        ("logit_bias_values", c_void_p),
        ("repetition", c_void_p),
        ("frequency", c_void_p),
        ("presence", c_void_p),
        ("count_offsets", c_void_p),
        ("count_ids", c_void_p),
        ("counts", c_void_p),
        ("in_prompt", c_void_p),
    ]


class lmhead_step(Structure):
    def __init__(self, **fields):
        super().__init__(size=sizeof(lmhead_step), **fields)

    _fields_ = [
        ("size", c_size_t),
        ("mode", c_int32),
        ("request", c_int32),
        ("rows", c_int64),
        ("counts", c_void_p),
        ("capacity", c_int64),
        ("k", c_int64),
        ("n_targets", c_int64),
        ("logits_dtype", c_uint32),
        ("flags", c_uint32),
        ("hidden", lmhead_tensor),
        ("indices", c_void_p),
        ("index_dtype", c_uint32),
        ("targets", c_void_p),
        ("sampling", POINTER(lmhead_sampling)),
        ("adjustments", POINTER(lmhead_adjustments)),
        ("stream", c_void_p),
        ("workspace", c_void_p),
        ("workspace_bytes", c_size_t),
        ("device_inputs", c_uint32),
        ("reserved", c_uint32),
        ("max_logit_bias", c_int64),
        ("max_counts", c_int64),
        ("n_logit_bias", c_int64),
        ("n_counts", c_int64),
    ]


class lmhead_stats(Structure):
    def __init__(self, **fields):
        super().__init__(size=sizeof(lmhead_stats), **fields)

    _fields_ = [
        ("size", c_size_t),
        ("rows_computed", c_int64),
        ("bytes_sent", c_uint64),
        ("bytes_received", c_uint64),
        ("weight_bytes", c_uint64),
        ("contract_ns", c_uint64),
        ("gather_ns", c_uint64),
        ("matmul_ns", c_uint64),
        ("exchange_ns", c_uint64),
        ("rounds", c_uint32),
    ]


class lmhead_answer(Structure):
    def __init__(self, **fields):
        super().__init__(size=sizeof(lmhead_answer), **fields)

    _fields_ = [
        ("size", c_size_t),
        ("row_status", c_void_p),
        ("logits", lmhead_tensor),
        ("ids", c_void_p),
        ("values", c_void_p),
        ("logsumexp", c_void_p),
        ("logprobs", c_void_p),
        ("ranks", c_void_p),
        ("top_ids", c_void_p),
        ("top_logprobs", c_void_p),
        ("stats", POINTER(lmhead_stats)),
    ]


class lmhead_needs(Structure):
    def __init__(self, **fields):
        super().__init__(size=sizeof(lmhead_needs), **fields)

    _fields_ = [
        ("size", c_size_t),
        ("workspace_bytes", c_size_t),
        ("first_row", c_int64),
        ("rows", c_int64),
        ("capturable", c_int32),
    ]


# {name: (result, arguments)}
FUNCTIONS = {
    "lmhead_status_name": (c_char_p, [c_int32]),
    "lmhead_last_error": (c_char_p, []),
    "lmhead_last_error_ranks": (c_size_t, [c_void_p, c_size_t]),
    "lmhead_abi": (c_int32, []),
    "lmhead_version": (c_char_p, []),
    "lmhead_features": (c_char_p, []),
    "lmhead_doctor": (c_int32, [POINTER(c_void_p)]),
    "lmhead_string_free": (None, [c_void_p]),
    "lmhead_set_log": (None, [CFUNCTYPE(None, c_void_p, c_int32, c_char_p), c_void_p, c_int32]),
    "lmhead_group_ranks": (c_int32, [c_int64, c_int64, c_int64, c_int32, c_int64, c_int64, c_void_p,
        c_void_p]),
    "lmhead_shard_range": (c_int32, [c_int64, c_int64, c_int64, c_void_p, c_void_p]),
    "lmhead_backend_open": (c_int32, [POINTER(lmhead_backend_config), POINTER(c_void_p)]),
    "lmhead_backend_free": (None, [c_void_p]),
    "lmhead_weights_load": (c_int32, [c_char_p, POINTER(lmhead_load), POINTER(c_void_p)]),
    "lmhead_weights_wrap": (c_int32, [POINTER(lmhead_weights_config), POINTER(c_void_p)]),
    "lmhead_weights_free": (None, [c_void_p]),
    "lmhead_weights_about": (c_int32, [c_void_p, POINTER(lmhead_weights_info)]),
    "lmhead_exchange_local": (c_int32, [c_int64, POINTER(c_void_p)]),
    "lmhead_exchange_callbacks": (c_int32, [POINTER(lmhead_transport), c_void_p, POINTER(c_void_p)]),
    "lmhead_exchange_nccl": (c_int32, [c_void_p, c_void_p, c_void_p, POINTER(c_void_p)]),
    "lmhead_exchange_free": (None, [c_void_p]),
    "lmhead_operation_name": (c_char_p, [c_int32]),
    "lmhead_config_from_model": (c_int32, [c_char_p, c_char_p, POINTER(lmhead_config)]),
    "lmhead_create": (c_int32, [POINTER(lmhead_config), POINTER(lmhead_group), c_void_p, c_void_p, c_void_p,
        POINTER(c_void_p)]),
    "lmhead_free": (None, [c_void_p]),
    "lmhead_sampling_check": (c_int32, [POINTER(lmhead_sampling), c_int64]),
    "lmhead_plan": (c_int32, [c_void_p, POINTER(lmhead_step), POINTER(lmhead_needs)]),
    "lmhead_prepare": (c_int32, [c_void_p, POINTER(lmhead_step), c_size_t]),
    "lmhead_run": (c_int32, [c_void_p, POINTER(lmhead_step), POINTER(lmhead_answer)]),
    "lmhead_async_status": (c_int32, [c_void_p]),
    "lmhead_abort": (c_int32, [c_void_p, c_char_p]),
    "lmhead_set_weights_version": (c_int32, [c_void_p, c_uint64]),
    "lmhead_release_memory": (c_int32, [c_void_p]),
    "lmhead_flight_recorder": (c_int32, [c_void_p, POINTER(c_void_p)]),
    "lmhead_rebuild": (c_int32, [c_void_p]),
}
