// Linear layers over packed bf16 weights.
//
// Weights are packed once into panels of 64 columns, [N/64][K/2][64][2]: one cache line holds sixteen outputs' next two
// inputs. Every output element is one chain of multiply-adds in the order of k, whatever the number of rows, so the
// answer of a row does not depend on what it was batched with.
#include "kernels.h"

namespace sgl {

constexpr int kPanel = 64;
constexpr int kWords = kPanel / kLanes;
constexpr int kRows = 6;
#if defined(__AVX512F__)
constexpr int kTileWords = kWords;  // 24 accumulators, 4 weights and a broadcast fill 32 registers
#else
constexpr int kTileWords = 1;       // 12 half words, 2 and a broadcast fill 16
#endif

template <int R>
static inline void tile(const bf16* x, int64_t ldx, const bf16* w, int64_t pairs, f32x16 (&acc)[R][kWords]) {
  constexpr int W = kTileWords;
  for (int first = 0; first < kWords; first += W) {
    f32x16 sum[R][W] = {};
    for (int64_t k = 0; k < pairs; ++k) {
      const bf16* row = w + (k * kPanel + first * kLanes) * 2;
      i32x16 column[W];
      for (int c = 0; c < W; ++c) {
        column[c] = load((const int32_t*)(row + c * kLanes * 2));
        __builtin_prefetch(row + c * kLanes * 2 + 4096);
      }
      for (int r = 0; r < R; ++r) {
        uint32_t pair;
        std::memcpy(&pair, x + r * ldx + 2 * k, 4);
        for (int c = 0; c < W; ++c) sum[r][c] = dot_bf16(sum[r][c], column[c], pair);
      }
    }
    for (int r = 0; r < R; ++r)
      for (int c = 0; c < W; ++c) acc[r][first + c] = sum[r][c];
  }
}

template <typename Out>
static inline void put(Out* place, f32x16 value, int count) {
  if constexpr (sizeof(Out) == 2) {
    if (count >= kLanes) return store_bf16((bf16*)place, value);
    for (int i = 0; i < count; ++i) place[i] = to_bf16(value[i]);
  } else {
    if (count >= kLanes) store(place, value);
    else for (int i = 0; i < count; ++i) place[i] = value[i];
  }
}

static inline f32x16 round_bf16(f32x16 x) {
  bf16 raw[kLanes];
  store_bf16(raw, x);
  return load_bf16(raw);
}

static inline f32x16 silu(f32x16 x) {
  i32x16 negative = x < 0.0f;
  f32x16 e = exp_lanes(select(negative, x, -x));
  return x * select(negative, e, splat(1.0f)) / (1.0f + e);
}

// One register tile: R rows of one panel. `columns` of the panel exist.
template <int R, typename Out>
static void rows_kernel(const bf16* x, int64_t ldx, const bf16* w, int64_t pairs, const float* bias, Out* out, int64_t ldo,
                        int columns, Epilogue epilogue) {
  f32x16 acc[R][kWords];
  tile<R>(x, ldx, w, pairs, acc);
  for (int r = 0; r < R; ++r) {
    if (bias)
      for (int c = 0; c < kWords; ++c) acc[r][c] += load(bias + c * kLanes);
    Out* row = out + r * ldo;
    if (epilogue == Epilogue::silu_mul) {
      for (int c = 0; c < kWords / 2; ++c) {
        f32x16 gate = round_bf16(silu(round_bf16(acc[r][c])));
        put(row + c * kLanes, gate * round_bf16(acc[r][c + kWords / 2]), columns / 2 - c * kLanes);
      }
      continue;
    }
    for (int c = 0; c < kWords && c * kLanes < columns; ++c) {
      Out* place = row + c * kLanes;
      int count = columns - c * kLanes;
      if constexpr (sizeof(Out) == 2) {
        if (epilogue == Epilogue::residual) {
          f32x16 before{};
          if (count >= kLanes) before = load_bf16((const bf16*)place);
          else for (int i = 0; i < count; ++i) before[i] = to_float(place[i]);
          acc[r][c] = round_bf16(acc[r][c]) + before;
        }
      }
      put(place, acc[r][c], count);
    }
  }
}

template <typename Out>
static void panel_rows(int rows, const bf16* x, int64_t ldx, const bf16* w, int64_t pairs, const float* bias, Out* out,
                       int64_t ldo, int columns, Epilogue epilogue) {
  switch (rows) {
    case 1: return rows_kernel<1>(x, ldx, w, pairs, bias, out, ldo, columns, epilogue);
    case 2: return rows_kernel<2>(x, ldx, w, pairs, bias, out, ldo, columns, epilogue);
    case 3: return rows_kernel<3>(x, ldx, w, pairs, bias, out, ldo, columns, epilogue);
    case 4: return rows_kernel<4>(x, ldx, w, pairs, bias, out, ldo, columns, epilogue);
    case 5: return rows_kernel<5>(x, ldx, w, pairs, bias, out, ldo, columns, epilogue);
    default: return rows_kernel<6>(x, ldx, w, pairs, bias, out, ldo, columns, epilogue);
  }
}

// Rows go through in blocks whose inputs stay in the second-level cache while all panels pass over them.
constexpr int64_t kBlockBytes = 512 << 10;

template <typename Out>
static void run(const bf16* x, int64_t rows, int64_t inner, const bf16* packed, int64_t columns, const float* bias,
                Out* out, Epilogue epilogue) {
  int64_t panels = (columns + kPanel - 1) / kPanel, pairs = inner / 2;
  int64_t block = kBlockBytes / (2 * inner) / kRows * kRows;
  if (block < 16 * kRows) block = 16 * kRows;
  int64_t shrink = epilogue == Epilogue::silu_mul ? 2 : 1, ldo = columns / shrink;
  for (int64_t first = 0; first < rows; first += block) {
    int64_t count = rows - first < block ? rows - first : block, tiles = (count + kRows - 1) / kRows;
    parallel(panels, [&](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p) {
        int width = int(columns - p * kPanel < kPanel ? columns - p * kPanel : kPanel);
        for (int64_t t = 0; t < tiles; ++t) {
          int64_t from = first + count * t / tiles, to = first + count * (t + 1) / tiles;
          panel_rows(int(to - from), x + from * inner, inner, packed + p * kPanel * inner, pairs,
                     bias ? bias + p * kPanel : nullptr, out + from * ldo + p * kPanel / shrink, ldo, width, epilogue);
        }
      }
    });
  }
}

void linear(const bf16* x, int64_t rows, int64_t inner, const bf16* packed, int64_t columns, const float* bias,
            bf16* out, Epilogue epilogue) {
  run(x, rows, inner, packed, columns, bias, out, epilogue);
}

}  // namespace sgl

using namespace sgl;

extern "C" {

// weight [columns, inner] row-major -> panels; inner must be even; missing columns of the last panel are zero.
void sgl_pack_bf16(const bf16* weight, int64_t columns, int64_t inner, bf16* packed) {
  int64_t panels = (columns + kPanel - 1) / kPanel;
  parallel(panels, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p)
      for (int64_t k = 0; k < inner / 2; ++k)
        for (int j = 0; j < kPanel; ++j) {
          int64_t n = p * kPanel + j;
          bf16* to = packed + ((p * (inner / 2) + k) * kPanel + j) * 2;
          to[0] = n < columns ? weight[n * inner + 2 * k] : 0;
          to[1] = n < columns ? weight[n * inner + 2 * k + 1] : 0;
        }
  });
}

// bias has a value for every column of every panel; epilogue: 0 none, 1 add to what `out` holds, 2 silu(gate) * up.
void sgl_linear_bf16(const bf16* x, int64_t rows, int64_t inner, const bf16* packed, int64_t columns, const float* bias,
                     bf16* out, int epilogue) {
  linear(x, rows, inner, packed, columns, bias, out, Epilogue(epilogue));
}

void sgl_linear_bf16_f32(const bf16* x, int64_t rows, int64_t inner, const bf16* packed, int64_t columns,
                         const float* bias, float* out) {
  run(x, rows, inner, packed, columns, bias, out, Epilogue::none);
}
}
