// Shared by the CPU kernels: SIMD words, bf16, exp, and the thread team. Sixteen float lanes everywhere; where the
// machine has no AVX-512 the compiler splits them, so one source serves every ISA.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstring>
#include <thread>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace sgl {

using bf16 = uint16_t;
constexpr int kLanes = 16;

// Sixteen lanes are one register with AVX-512. Elsewhere they are two halves of eight: compilers split a vector type
// that the machine does not have by way of memory, which costs a factor of fifty.
#if defined(__AVX512F__)

typedef float f32x16 __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t i32x16 __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint16_t u16x16 __attribute__((vector_size(32), aligned(2), may_alias));

static inline f32x16 load(const float* p) { return *(const f32x16*)p; }
static inline i32x16 load(const int32_t* p) { return *(const i32x16*)p; }
static inline void store(float* p, f32x16 x) { *(f32x16*)p = x; }
static inline f32x16 splat(float x) { return f32x16{} + x; }
static inline f32x16 select(i32x16 mask, f32x16 a, f32x16 b) { return mask ? a : b; }
static inline f32x16 as_float(i32x16 x) { return (f32x16)x; }
static inline i32x16 as_int(f32x16 x) { return (i32x16)x; }
static inline i32x16 widen(const uint16_t* p) { return __builtin_convertvector(*(const u16x16*)p, i32x16); }
static inline void narrow(uint16_t* p, i32x16 x) { *(u16x16*)p = __builtin_convertvector(x, u16x16); }
static inline void narrow(int8_t* p, i32x16 x) { _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8((__m512i)x)); }
static inline i32x16 widen(const uint8_t* p) { return (i32x16)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p)); }
static inline f32x16 to_float(i32x16 x) { return __builtin_convertvector(x, f32x16); }
static inline int32_t sum_lanes(i32x16 x) { return _mm512_reduce_add_epi32((__m512i)x); }

#else

template <typename T>
struct Pair {
  typedef T Half __attribute__((vector_size(32), aligned(4), may_alias));
  Half a, b;
  T operator[](int i) const { return i < 8 ? a[i] : b[i - 8]; }
  T& operator[](int i) { return i < 8 ? ((T*)&a)[i] : ((T*)&b)[i - 8]; }
};
using f32x16 = Pair<float>;
using i32x16 = Pair<int32_t>;

#define SGL_LANEWISE(op)                                                                              \
  template <typename T>                                                                               \
  static inline Pair<T> operator op(Pair<T> x, Pair<T> y) { return {x.a op y.a, x.b op y.b}; }        \
  template <typename T, typename S>                                                                   \
  static inline Pair<T> operator op(Pair<T> x, S y) { return {x.a op T(y), x.b op T(y)}; }            \
  template <typename T>                                                                               \
  static inline Pair<T> operator op(T x, Pair<T> y) { return {x op y.a, x op y.b}; }
SGL_LANEWISE(+)
SGL_LANEWISE(-)
SGL_LANEWISE(*)
SGL_LANEWISE(/)
SGL_LANEWISE(&)
SGL_LANEWISE(|)
SGL_LANEWISE(<<)
SGL_LANEWISE(>>)
#undef SGL_LANEWISE
#define SGL_COMPARE(op)                                                                               \
  template <typename T>                                                                               \
  static inline i32x16 operator op(Pair<T> x, Pair<T> y) { return {x.a op y.a, x.b op y.b}; }         \
  template <typename T, typename S>                                                                   \
  static inline i32x16 operator op(Pair<T> x, S y) { return {x.a op T(y), x.b op T(y)}; }
SGL_COMPARE(<)
SGL_COMPARE(>)
SGL_COMPARE(<=)
SGL_COMPARE(>=)
#undef SGL_COMPARE
static inline i32x16 operator~(i32x16 x) { return {~x.a, ~x.b}; }
static inline f32x16 operator-(f32x16 x) { return {-x.a, -x.b}; }
template <typename T, typename S>
static inline Pair<T>& operator+=(Pair<T>& x, S y) { return x = x + y; }
template <typename T, typename S>
static inline Pair<T>& operator&=(Pair<T>& x, S y) { return x = x & y; }

static inline f32x16 load(const float* p) { return {*(const f32x16::Half*)p, *(const f32x16::Half*)(p + 8)}; }
static inline i32x16 load(const int32_t* p) { return {*(const i32x16::Half*)p, *(const i32x16::Half*)(p + 8)}; }
static inline void store(float* p, f32x16 x) { *(f32x16::Half*)p = x.a, *(f32x16::Half*)(p + 8) = x.b; }
static inline f32x16 splat(float x) { return f32x16{} + x; }
static inline f32x16 select(i32x16 m, f32x16 x, f32x16 y) { return {m.a ? x.a : y.a, m.b ? x.b : y.b}; }
static inline f32x16 as_float(i32x16 x) { return {(f32x16::Half)x.a, (f32x16::Half)x.b}; }
static inline i32x16 as_int(f32x16 x) { return {(i32x16::Half)x.a, (i32x16::Half)x.b}; }
static inline i32x16 widen(const uint16_t* p) {
  i32x16 out;
  for (int i = 0; i < 8; ++i) ((int32_t*)&out.a)[i] = p[i], ((int32_t*)&out.b)[i] = p[i + 8];
  return out;
}
static inline void narrow(uint16_t* p, i32x16 x) {
  for (int i = 0; i < 8; ++i) p[i] = uint16_t(x.a[i]), p[i + 8] = uint16_t(x.b[i]);
}
static inline void narrow(int8_t* p, i32x16 x) {
  for (int i = 0; i < kLanes; ++i) p[i] = int8_t(x[i]);
}
static inline i32x16 widen(const uint8_t* p) {
  i32x16 out;
  for (int i = 0; i < kLanes; ++i) out[i] = p[i];
  return out;
}
static inline f32x16 to_float(i32x16 x) {
  return {__builtin_convertvector(x.a, f32x16::Half), __builtin_convertvector(x.b, f32x16::Half)};
}
static inline int32_t sum_lanes(i32x16 x) {
  int32_t total = 0;
  for (int i = 0; i < kLanes; ++i) total += x[i];
  return total;
}

#endif

static inline float to_float(bf16 x) {
  uint32_t bits = uint32_t(x) << 16;
  float out;
  std::memcpy(&out, &bits, 4);
  return out;
}

// Round to nearest even; NaN stays NaN.
static inline bf16 to_bf16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return bf16((bits >> 16) | 0x40);
  return bf16((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
}

static inline f32x16 load_bf16(const bf16* p) { return as_float(widen(p) << 16); }

// Halves of IEEE's; infinities and NaNs are not among them.
static inline f32x16 load_fp16(const uint16_t* p) {
#if defined(__AVX512F__)
  return (f32x16)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
#else
  i32x16 bits = widen(p);
  f32x16 magnitude = as_float((bits & 0x7fff) << 13) * 5.192296858534828e33f;  // 2^112: the exponents' offset
  return as_float(as_int(magnitude) + ((bits >> 15) << 31));
#endif
}

static inline void store_bf16(bf16* p, f32x16 x) {
#if defined(__AVX512BF16__)
  _mm256_storeu_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh((__m512)x));
#else
  i32x16 bits = as_int(x);
  i32x16 rounded = ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) & 0xffff;
  i32x16 quiet = ((bits >> 16) | 0x40) & 0xffff;
  narrow(p, as_int(select((bits & 0x7fffffff) > 0x7f800000, as_float(quiet), as_float(rounded))));
#endif
}

// acc[lane] += x.lo * w[lane].lo + x.hi * w[lane].hi, for sixteen lanes of bf16 pairs and one broadcast pair.
static inline f32x16 dot_bf16(f32x16 acc, i32x16 w, uint32_t x) {
#if defined(__AVX512BF16__)
  return (f32x16)_mm512_dpbf16_ps((__m512)acc, (__m512bh)w, (__m512bh)_mm512_set1_epi32((int)x));
#else
  f32x16 low = as_float(w << 16), high = as_float(w & int32_t(0xffff0000));
  uint32_t x_low = x << 16, x_high = x & 0xffff0000u;
  float a, b;
  std::memcpy(&a, &x_low, 4);
  std::memcpy(&b, &x_high, 4);
  return acc + low * a + high * b;
#endif
}

// acc[lane] += the products of four unsigned bytes of w[lane] with four signed bytes of x.
static inline i32x16 dot_bytes(i32x16 acc, i32x16 w, uint32_t x) {
#if defined(__AVX512VNNI__)
  return (i32x16)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)w, _mm512_set1_epi32((int)x));
#else
  int8_t b[4];
  std::memcpy(b, &x, 4);
  // Without VNNI as pairs of 16-bit products: those of bytes alone (maddubs) saturate.
  [[maybe_unused]] int even = (uint16_t)b[0] | int(uint16_t(b[2]) << 16), odd = (uint16_t)b[1] | int(uint16_t(b[3]) << 16);
#if defined(__AVX512BW__)
  __m512i v = (__m512i)w, low = _mm512_and_si512(v, _mm512_set1_epi16(255)), high = _mm512_srli_epi16(v, 8);
  __m512i sum = _mm512_add_epi32(_mm512_madd_epi16(low, _mm512_set1_epi32(even)),
                                 _mm512_madd_epi16(high, _mm512_set1_epi32(odd)));
  return acc + (i32x16)sum;
#elif defined(__AVX2__)
  auto half = [&](__m256i v) {
    __m256i low = _mm256_and_si256(v, _mm256_set1_epi16(255)), high = _mm256_srli_epi16(v, 8);
    return (i32x16::Half)_mm256_add_epi32(_mm256_madd_epi16(low, _mm256_set1_epi32(even)),
                                          _mm256_madd_epi16(high, _mm256_set1_epi32(odd)));
  };
  return {acc.a + half((__m256i)w.a), acc.b + half((__m256i)w.b)};
#else
  for (int i = 0; i < 4; ++i) acc += ((w >> 8 * i) & 255) * int(b[i]);
  return acc;
#endif
#endif
}

static inline float sum_lanes(f32x16 x) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)x);
#else
  float total = 0;
  for (int i = 0; i < kLanes; ++i) total += x[i];
  return total;
#endif
}

static inline i32x16 at_most(i32x16 a, i32x16 b) { return as_int(select(a > b, as_float(b), as_float(a))); }
static inline f32x16 max_lanes(f32x16 a, f32x16 b) { return select(a > b, a, b); }

static inline float max_lane(f32x16 x) {
  float top = x[0];
  for (int i = 1; i < kLanes; ++i) top = x[i] > top ? x[i] : top;
  return top;
}

// exp(x) for x <= 0: x = n ln2 + r, a degree-6 polynomial of r, exponent added as bits. Below -87 the result is 0.
static inline f32x16 exp_lanes(f32x16 x) {
  f32x16 low = splat(-87.0f);
  i32x16 dead = x < low;
  x = select(dead, low, x);
  f32x16 shifted = x * 1.44269504088896341f + 12582912.0f;  // 1.5 * 2^23: the sum's low bits are round(x / ln2)
  f32x16 n = shifted - 12582912.0f;
  f32x16 r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  f32x16 p = r * 1.3981999507e-3f + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  i32x16 bits = as_int(p) + ((as_int(shifted) - 0x4b400000) << 23);
  return as_float(bits & ~dead);
}

// ---- threads -------------------------------------------------------------------------------------------------------

// torch's OpenMP team, reached through function pointers, so that there is one pool of threads in the process.
using Body = void (*)(void*);
extern void (*gomp_parallel)(Body, void*, unsigned, unsigned);
extern int (*omp_thread)();
extern int (*omp_threads)();
extern int num_threads;

// The threads of one native call. Within `together` every thread runs the same code; `parallel` and `dynamic` then
// share out their work and wait for each other, which costs a tenth of starting a team for every loop.
struct Team {
  void barrier(int size) {
    if (size == 1) return;
    int now = phase.load(std::memory_order_relaxed);
    if (arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == size) {
      arrived.store(0, std::memory_order_relaxed);
      phase.store(now + 1, std::memory_order_release);
      return;
    }
    for (int spins = 0; phase.load(std::memory_order_acquire) == now; ++spins) {
      if (spins < kSpins) relax();
      else std::this_thread::yield();  // somebody else has our core: let the thread we wait for run
    }
  }

  static void relax() {
#if defined(__x86_64__)
    _mm_pause();
#endif
  }

  static constexpr int kSpins = 4000;
  void* shared = nullptr;                   // what one thread made for all
  std::atomic<int64_t> next[2] = {0, 0};    // of `dynamic`, in turns: while one is used the other is reset
  alignas(64) std::atomic<int> arrived{0};
  alignas(64) std::atomic<int> phase{0};
};

struct Place {
  Team* team = nullptr;
  int rank = 0, size = 1, turn = 0;

  void wait() { team->barrier(size); }
};
extern thread_local Place place;

// Runs f() on every thread of a new team.
template <typename F>
static inline void together(const F& f) {
  struct Call {
    const F* f;
    Team team;
    static void run(void* raw) {
      auto* call = (Call*)raw;
      place = {&call->team, omp_thread(), omp_threads(), 0};  // OpenMP may give fewer threads than it was asked for
      (*call->f)();
      place = {};
    }
  };
  Call call{&f, {}};
  gomp_parallel(&Call::run, &call, unsigned(num_threads), 0);
}

// Calls f(begin, end) for a partition of [0, count) into at most one range per thread, of at least `grain` each.
template <typename F>
static inline void parallel(int64_t count, const F& f, int64_t grain = 1) {
  if (!place.team) return together([&] { parallel(count, f, grain); });
  int64_t parts = count / grain < place.size ? count / grain : place.size;
  if (parts < 1) parts = 1;
  if (place.rank < parts) {
    int64_t begin = count * place.rank / parts, end = count * (place.rank + 1) / parts;
    if (begin < end) f(begin, end);
  }
  place.wait();
}

// Calls f(i) for every i in [0, count), handing the next one to whichever thread is free.
template <typename F>
static inline void dynamic(int64_t count, const F& f) {
  if (!place.team) return together([&] { dynamic(count, f); });
  auto& next = place.team->next[place.turn];
  place.turn ^= 1;
  if (place.rank == 0) place.team->next[place.turn].store(0, std::memory_order_relaxed);
  for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) f(i);
  place.wait();
}

// The address that make() returned on one thread of the team, for all of them.
template <typename F>
static inline void* once(const F& make) {
  if (place.rank == 0) place.team->shared = make();
  place.wait();
  void* made = place.team->shared;
  place.wait();
  return made;
}

}  // namespace sgl
