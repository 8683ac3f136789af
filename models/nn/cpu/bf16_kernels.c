/* Linear layers and attention of a decoding step in bf16 on a CPU, at memory bandwidth.

   Matrix products of libraries are made for many rows; with two they wait for one cache line after
   the other. Here weights are stored in the order in which they are read, and prefetched (also past
   the end, where a prefetch does nothing). AVX-512F is needed where this runs, not where it is
   compiled. bf16_kernels.py documents the functions. */

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#include <Python.h>

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__)

#include <immintrin.h>

#define OUTPUTS 32      /* of a block: two registers of sums for each row */
#define PREFETCH 4096   /* numbers between what is prefetched and what is used: 8 KiB */
#define MAX_ROWS 8      /* their sums stay in registers */
#define MAX_REGISTERS 8 /* of a head: 128 channels */

#define AVX512 __attribute__((target("avx512f")))
#define INLINE static inline __attribute__((always_inline)) AVX512
/* Over a count known when compiled, so that sums stay in registers. */
#define EACH(name, count) _Pragma("GCC unroll 8") for (int name = 0; name < (count); name++)

/* Of 32 numbers in bf16, those at even positions and those at odd ones. */
INLINE __m512 even(__m512i pairs) { return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)); }

INLINE __m512 odd(__m512i pairs) {
    return _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32((int)0xffff0000)));
}

INLINE __m512i load_and_prefetch(const uint16_t *from) {
    _mm_prefetch((const char *)(from + PREFETCH), _MM_HINT_T0);
    return _mm512_loadu_si512(from);
}

INLINE __m512 load_bf16(const uint16_t *from) {
    return even(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)from)));
}

INLINE __m512 broadcast_bf16(uint16_t value) {
    return _mm512_castsi512_ps(_mm512_set1_epi32((int)((uint32_t)value << 16)));
}

/* The nearest bf16 in the upper halves, ties to even; NaN stays NaN. */
INLINE __m512i round_to_bf16(__m512 value) {
    __m512i bits = _mm512_castps_si512(value);
    __m512i last = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i near = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), last);
    __mmask16 nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
    return _mm512_mask_mov_epi32(near, nan, _mm512_set1_epi32(0x7fc00000));
}

INLINE void store_bf16(__m512 value, uint16_t *to) {
    __m512i halves = _mm512_srli_epi32(round_to_bf16(value), 16);
    _mm256_storeu_si256((__m256i *)to, _mm512_cvtepi32_epi16(halves));
}

INLINE void store_pairs(__m512 at_even, __m512 at_odd, uint16_t *to) {
    __m512i upper = _mm512_and_si512(round_to_bf16(at_odd), _mm512_set1_epi32((int)0xffff0000));
    _mm512_storeu_si512(to, _mm512_or_si512(upper, _mm512_srli_epi32(round_to_bf16(at_even), 16)));
}

INLINE __m512 polynomial(__m512 x, const float *coefficients, int count) {
    __m512 sum = _mm512_set1_ps(coefficients[0]);
    EACH(i, count - 1) sum = _mm512_fmadd_ps(sum, x, _mm512_set1_ps(coefficients[i + 1]));
    return sum;
}

/* e^x = 2^n 2^f, |f| <= 1/2, by the series of 2^f: to 2e-7 of it, from e^-100 to e^88. */
INLINE __m512 exponential(__m512 x) {
    x = _mm512_min_ps(_mm512_set1_ps(88), _mm512_max_ps(_mm512_set1_ps(-100), x));
    static const float series[] = {1.5403530e-4f, 1.3333558e-3f, 9.6181291e-3f, 5.5504109e-2f,
                                   2.4022651e-1f, 6.9314718e-1f, 1.0f};
    __m512 power = _mm512_mul_ps(x, _mm512_set1_ps(1.44269504f));
    __m512 whole = _mm512_roundscale_ps(power, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    return _mm512_scalef_ps(polynomial(_mm512_sub_ps(power, whole), series, 7), whole);
}

/* x / (1 + e^-2u), which is x (1 + tanh u) / 2, u = sqrt(2/pi) (x + 0.044715 x^3). */
INLINE __m512 gelu_tanh(__m512 x) {
    __m512 square = _mm512_mul_ps(x, x);
    __m512 cubic = _mm512_fmadd_ps(square, _mm512_set1_ps(0.044715f), _mm512_set1_ps(1));
    __m512 u = _mm512_mul_ps(_mm512_mul_ps(x, cubic), _mm512_set1_ps(-1.59576912f));
    return _mm512_div_ps(x, _mm512_add_ps(_mm512_set1_ps(1), exponential(u)));
}

/* max(x, 0) - |x| erfc(|x| / sqrt 2) / 2, erfc to 1.5e-7 (Abramowitz and Stegun, 7.1.26). */
INLINE __m512 gelu_erf(__m512 x) {
    static const float series[] = {1.061405429f, -1.453152027f, 1.421413741f, -0.284496736f,
                                   0.254829592f};
    __m512 z = _mm512_mul_ps(_mm512_abs_ps(x), _mm512_set1_ps(0.70710678f));
    __m512 t = _mm512_div_ps(_mm512_set1_ps(1),
                             _mm512_fmadd_ps(z, _mm512_set1_ps(0.3275911f), _mm512_set1_ps(1)));
    __m512 bell = exponential(_mm512_mul_ps(z, _mm512_sub_ps(_mm512_setzero_ps(), z)));
    __m512 tail = _mm512_mul_ps(_mm512_mul_ps(polynomial(t, series, 5), t), bell);
    __m512 half = _mm512_mul_ps(_mm512_abs_ps(x), _mm512_set1_ps(0.5f));
    return _mm512_fnmadd_ps(half, tail, _mm512_max_ps(_mm512_setzero_ps(), x));
}

enum activation { NONE, TANH, ERF };

INLINE __m512 activate(__m512 x, enum activation activation) {
    return activation == TANH ? gelu_tanh(x) : activation == ERF ? gelu_erf(x) : x;
}

INLINE void block(const int rows, const enum activation activation, const uint16_t *x,
                  const uint16_t *weight, const float *bias, const uint16_t *to, uint16_t *out,
                  ptrdiff_t inputs, ptrdiff_t outputs) {
    __m512 first[MAX_ROWS], second[MAX_ROWS];
    EACH(row, rows) {
        first[row] = _mm512_loadu_ps(bias);
        second[row] = _mm512_loadu_ps(bias + OUTPUTS / 2);
    }
    for (ptrdiff_t input = 0; input < inputs; input++) {
        __m512i pairs = load_and_prefetch(weight + input * OUTPUTS);
        EACH(row, rows) {
            __m512 factor = broadcast_bf16(x[row * inputs + input]);
            first[row] = _mm512_fmadd_ps(factor, even(pairs), first[row]);
            second[row] = _mm512_fmadd_ps(factor, odd(pairs), second[row]);
        }
    }
    EACH(row, rows) {
        ptrdiff_t at = row * outputs;
        if (to) {
            first[row] = _mm512_add_ps(first[row], load_bf16(to + at));
            second[row] = _mm512_add_ps(second[row], load_bf16(to + at + OUTPUTS / 2));
        }
        store_bf16(activate(first[row], activation), out + at);
        store_bf16(activate(second[row], activation), out + at + OUTPUTS / 2);
    }
}

INLINE void product(const enum activation activation, void *const *at, const Py_ssize_t *size) {
    const uint16_t *x = at[0], *weight = at[1], *to = at[3];
    const float *bias = at[2];
    uint16_t *out = at[4];
    ptrdiff_t inputs = size[1], outputs = size[2];
#define ROWS(count)                                                                               \
    case count:                                                                                   \
        block(count, activation, x, weight + n * inputs, bias + n, to ? to + n : NULL, out + n,   \
              inputs, outputs);                                                                   \
        break
    for (ptrdiff_t n = 0; n < outputs; n += OUTPUTS) {
        switch (size[0]) {
            ROWS(1); ROWS(2); ROWS(3); ROWS(4); ROWS(5); ROWS(6); ROWS(7); ROWS(8);
        }
    }
}

AVX512 static void linear(void *const *at, const Py_ssize_t *size) { product(NONE, at, size); }
AVX512 static void tanh_linear(void *const *at, const Py_ssize_t *size) { product(TANH, at, size); }
AVX512 static void erf_linear(void *const *at, const Py_ssize_t *size) { product(ERF, at, size); }

/* One head's query over its first keys and values. Scores are of a length rounded up to 16. */
INLINE void head(const int registers, const uint16_t *query, const uint16_t *keys,
                 const uint16_t *values, float *scores, uint16_t *out, ptrdiff_t count) {
    const ptrdiff_t width = registers * 16;
    __m512 sums[MAX_REGISTERS], scaled[MAX_REGISTERS], maximum = _mm512_set1_ps(-INFINITY), total;
    float scale = 1 / sqrtf((float)width);
    EACH(i, registers / 2) {
        __m512i pairs = _mm512_loadu_si512(query + i * 32);
        scaled[2 * i] = _mm512_mul_ps(even(pairs), _mm512_set1_ps(scale));
        scaled[2 * i + 1] = _mm512_mul_ps(odd(pairs), _mm512_set1_ps(scale));
    }
    for (ptrdiff_t position = 0; position < count; position++) {
        __m512 products = _mm512_setzero_ps();
        EACH(i, registers / 2) {
            __m512i pairs = load_and_prefetch(keys + position * width + i * 32);
            products = _mm512_fmadd_ps(scaled[2 * i], even(pairs), products);
            products = _mm512_fmadd_ps(scaled[2 * i + 1], odd(pairs), products);
        }
        scores[position] = _mm512_reduce_add_ps(products);
    }
    for (ptrdiff_t position = count; position % 16; position++) scores[position] = -INFINITY;
    for (ptrdiff_t position = 0; position < count; position += 16)
        maximum = _mm512_max_ps(_mm512_loadu_ps(scores + position), maximum);
    maximum = _mm512_set1_ps(_mm512_reduce_max_ps(maximum));
    total = _mm512_setzero_ps();
    for (ptrdiff_t position = 0; position < count; position += 16) {
        __m512 below = _mm512_sub_ps(_mm512_loadu_ps(scores + position), maximum);
        __m512 share = exponential(below);
        _mm512_storeu_ps(scores + position, share);
        total = _mm512_add_ps(total, share);
    }
    EACH(i, registers) sums[i] = _mm512_setzero_ps();
    for (ptrdiff_t position = 0; position < count; position++) {
        __m512 share = _mm512_set1_ps(scores[position]);
        EACH(i, registers / 2) {
            __m512i pairs = load_and_prefetch(values + position * width + i * 32);
            sums[2 * i] = _mm512_fmadd_ps(share, even(pairs), sums[2 * i]);
            sums[2 * i + 1] = _mm512_fmadd_ps(share, odd(pairs), sums[2 * i + 1]);
        }
    }
    __m512 whole = _mm512_set1_ps(1 / _mm512_reduce_add_ps(total));
    EACH(i, registers / 2) {
        store_pairs(_mm512_mul_ps(sums[2 * i], whole), _mm512_mul_ps(sums[2 * i + 1], whole),
                  out + i * 32);
    }
}

AVX512 static void attend(void *const *at, const Py_ssize_t *size) {
    const uint16_t *qkv = at[0];
    uint16_t *store = at[1], *out = at[3];
    float *scores = at[2];
    ptrdiff_t batch = size[0], heads = size[1], slots = size[2], width = size[3], slot = size[4],
              count = size[5], pair = batch * heads * slots * width;
    for (ptrdiff_t b = 0; b < batch; b++)
        for (ptrdiff_t h = 0; h < heads; h++) {
            const uint16_t *query = qkv + (b * 3 * heads + h) * width;
            uint16_t *keys = store + (b * heads + h) * slots * width, *values = keys + pair;
            uint16_t *mixed = out + (b * heads + h) * width;
            memcpy(keys + slot * width, query + heads * width, 2 * width);
            memcpy(values + slot * width, query + 2 * heads * width, 2 * width);
            switch (width) {
                case 32: head(2, query, keys, values, scores, mixed, count); break;
                case 64: head(4, query, keys, values, scores, mixed, count); break;
                case 128: head(8, query, keys, values, scores, mixed, count); break;
            }
        }
}

static int serves(void) { return __builtin_cpu_supports("avx512f") != 0; }

#else

static void linear(void *const *at, const Py_ssize_t *size) {}
static void tanh_linear(void *const *at, const Py_ssize_t *size) {}
static void erf_linear(void *const *at, const Py_ssize_t *size) {}
static void attend(void *const *at, const Py_ssize_t *size) {}
static int serves(void) { return 0; }

#endif

/* Addresses and sizes are not checked: bf16_kernels.py does. */
static PyObject *call(void (*work)(void *const *, const Py_ssize_t *), int addresses, int sizes,
                        PyObject *const *arguments, Py_ssize_t count) {
    void *address[5];
    Py_ssize_t size[6];
    if (count != addresses + sizes) {
        PyErr_Format(PyExc_TypeError, "%d addresses and %d sizes are needed", addresses, sizes);
        return NULL;
    }
    for (int i = 0; i < addresses; i++) address[i] = PyLong_AsVoidPtr(arguments[i]);
    for (int i = 0; i < sizes; i++) size[i] = PyLong_AsSsize_t(arguments[addresses + i]);
    if (PyErr_Occurred()) return NULL;
    Py_BEGIN_ALLOW_THREADS work(address, size);
    Py_END_ALLOW_THREADS Py_RETURN_NONE;
}

#define METHOD(work, addresses, sizes)                                                            \
    static PyObject *work##_method(PyObject *module, PyObject *const *arguments,                  \
                                   Py_ssize_t count) {                                            \
        return call(work, addresses, sizes, arguments, count);                                    \
    }
METHOD(linear, 5, 3)
METHOD(tanh_linear, 5, 3)
METHOD(erf_linear, 5, 3)
METHOD(attend, 4, 6)

static PyObject *serves_method(PyObject *module, PyObject *nothing) {
    return PyBool_FromLong(serves());
}

#define ENTRY(work) {#work, (PyCFunction)(void (*)(void))work##_method, METH_FASTCALL, NULL}

static PyMethodDef methods[] = {
    ENTRY(linear), ENTRY(tanh_linear), ENTRY(erf_linear), ENTRY(attend),
    {"serves", serves_method, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_bf16_kernels", NULL, 0, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__bf16_kernels(void) { return PyModule_Create(&definition); }
