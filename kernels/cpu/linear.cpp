// Linear layers over packed weights.
//
// Weights are packed once into panels of 64 columns, in which one cache line holds sixteen outputs' next inputs:
//   bf16: [K/2][64][2]
//   int8: [K/4][64][4] bytes of value + 128, then [64] float scales
//   int4: for every group of inputs [G/8][64][4] bytes, whose low halves are inputs 0..3 of eight and high halves 4..7,
//         then [64] bf16 scales, then, if stored, [64] bytes of zero points
// Integer products take activations as signed bytes, quantised row by row (quantize.cpp), and correct the weights' zero
// point by the sum of the row. Every output element is one chain of sums in the order of k, whatever the number of rows,
// so the answer of a row does not depend on what it was batched with.
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
constexpr int kAhead = 8192;        // bytes that the next weights are asked for in advance

template <int R>
using Sums = f32x16[R][kWords];

static inline uint32_t word(const void* p) {
  uint32_t out;
  std::memcpy(&out, p, 4);
  return out;
}

static inline i32x16 stream(const uint8_t* line) {
  __builtin_prefetch(line + kAhead);
  return load((const int32_t*)line);
}

// A format says how large a panel is and computes R rows of one.
struct Bf16 {
  static int64_t panel_bytes(const Weight& w) { return w.inner * kPanel * 2; }

  template <int R>
  static inline void tile(const Weight& w, const uint8_t* panel, const Activations& x, int64_t row, Sums<R>& out) {
    constexpr int W = kTileWords;
    const uint8_t* in = (const uint8_t*)x.data + row * x.stride;
    for (int first = 0; first < kWords; first += W) {
      f32x16 sum[R][W] = {};
      for (int64_t k = 0; k < w.inner / 2; ++k) {
        i32x16 column[W];
        for (int c = 0; c < W; ++c) column[c] = stream(panel + (k * kWords + first + c) * 64);
        for (int r = 0; r < R; ++r)
          for (int c = 0; c < W; ++c) sum[r][c] = dot_bf16(sum[r][c], column[c], word(in + r * x.stride + 4 * k));
      }
      for (int r = 0; r < R; ++r)
        for (int c = 0; c < W; ++c) out[r][first + c] = sum[r][c];
    }
  }
};

struct Int8 {
  static int64_t quads(const Weight& w) { return (w.inner + 3) / 4; }
  static int64_t panel_bytes(const Weight& w) { return (quads(w) * 4 + 4) * kPanel; }

  template <int R>
  static inline void tile(const Weight& w, const uint8_t* panel, const Activations& x, int64_t row, Sums<R>& out) {
    constexpr int W = kTileWords;
    const uint8_t* in = (const uint8_t*)x.data + row * x.stride;
    const float* scales = (const float*)(panel + quads(w) * 4 * kPanel);
    for (int first = 0; first < kWords; first += W) {
      i32x16 sum[R][W];
      for (int r = 0; r < R; ++r)
        for (int c = 0; c < W; ++c) sum[r][c] = i32x16{} - 128 * x.sums[row + r];
      for (int64_t k = 0; k < quads(w); ++k) {
        i32x16 column[W];
        for (int c = 0; c < W; ++c) column[c] = stream(panel + (k * kWords + first + c) * 64);
        for (int r = 0; r < R; ++r)
          for (int c = 0; c < W; ++c) sum[r][c] = dot_bytes(sum[r][c], column[c], word(in + r * x.stride + 4 * k));
      }
      for (int r = 0; r < R; ++r)
        for (int c = 0; c < W; ++c)
          out[r][first + c] = to_float(sum[r][c]) * (load(scales + (first + c) * kLanes) * x.scales[row + r]);
    }
  }
};

struct Int4 {
  static int64_t groups(const Weight& w) { return (w.inner + w.group - 1) / w.group; }
  static int64_t group_bytes(const Weight& w) { return kPanel * (w.group / 2 + 2 + (w.has_zeros ? 1 : 0)); }
  static int64_t panel_bytes(const Weight& w) { return groups(w) * group_bytes(w); }

  template <int R>
  static inline void tile(const Weight& w, const uint8_t* panel, const Activations& x, int64_t row, Sums<R>& out) {
    constexpr int W = kTileWords;
    int64_t count = groups(w);
    for (int r = 0; r < R; ++r)
      for (int c = 0; c < kWords; ++c) out[r][c] = f32x16{};
    for (int64_t g = 0; g < count; ++g) {
      const uint8_t *block = panel + g * group_bytes(w), *in = (const uint8_t*)x.data + row * x.stride + g * w.group;
      const bf16* scales = (const bf16*)(block + kPanel * w.group / 2);
      const uint8_t* zeros = (const uint8_t*)(scales + kPanel);
      for (int first = 0; first < kWords; first += W) {
        i32x16 sum[R][W];
        for (int c = 0; c < W; ++c) {
          i32x16 zero = w.has_zeros ? widen(zeros + (first + c) * kLanes) : i32x16{} + 8;
          for (int r = 0; r < R; ++r) sum[r][c] = i32x16{} - zero * x.sums[(row + r) * count + g];
        }
        for (int64_t k = 0; k < w.group / 8; ++k) {
          i32x16 low[W], high[W];
          for (int c = 0; c < W; ++c) {
            i32x16 line = stream(block + (k * kWords + first + c) * 64);
            low[c] = line & 0x0f0f0f0f;
            high[c] = (line >> 4) & 0x0f0f0f0f;
          }
          for (int r = 0; r < R; ++r) {
            const uint8_t* bytes = in + r * x.stride + 8 * k;
            for (int c = 0; c < W; ++c)
              sum[r][c] = dot_bytes(dot_bytes(sum[r][c], low[c], word(bytes)), high[c], word(bytes + 4));
          }
        }
        for (int r = 0; r < R; ++r)
          for (int c = 0; c < W; ++c) {
            f32x16 scale = load_bf16(scales + (first + c) * kLanes) * x.scales[(row + r) * count + g];
            out[r][first + c] += to_float(sum[r][c]) * scale;
          }
      }
    }
  }
};

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
template <typename F, int R, typename Out>
static void rows_kernel(const Weight& w, int64_t p, const Activations& x, int64_t first, Out* out, int64_t ldo,
                        int columns, Epilogue epilogue) {
  Sums<R> acc;
  F::template tile<R>(w, w.data + p * F::panel_bytes(w), x, first, acc);
  const float* bias = w.bias ? w.bias + p * kPanel : nullptr;
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

template <typename F, typename Out>
static void panel_rows(int rows, const Weight& w, int64_t p, const Activations& x, int64_t first, Out* out, int64_t ldo,
                       int columns, Epilogue epilogue) {
  switch (rows) {
    case 1: return rows_kernel<F, 1>(w, p, x, first, out, ldo, columns, epilogue);
    case 2: return rows_kernel<F, 2>(w, p, x, first, out, ldo, columns, epilogue);
    case 3: return rows_kernel<F, 3>(w, p, x, first, out, ldo, columns, epilogue);
    case 4: return rows_kernel<F, 4>(w, p, x, first, out, ldo, columns, epilogue);
    case 5: return rows_kernel<F, 5>(w, p, x, first, out, ldo, columns, epilogue);
    default: return rows_kernel<F, 6>(w, p, x, first, out, ldo, columns, epilogue);
  }
}

// Rows go through in blocks whose inputs stay in the second-level cache while all panels pass over them.
constexpr int64_t kBlockBytes = 512 << 10;

template <typename F, typename Out>
static void run(const Weight& w, const Activations& x, int64_t rows, Out* out, Epilogue epilogue) {
  int64_t panels = (w.columns + kPanel - 1) / kPanel, block = kBlockBytes / x.stride / kRows * kRows;
  if (block < 16 * kRows) block = 16 * kRows;
  int64_t shrink = epilogue == Epilogue::silu_mul ? 2 : 1, ldo = w.columns / shrink;
  for (int64_t first = 0; first < rows; first += block) {
    int64_t count = rows - first < block ? rows - first : block, tiles = (count + kRows - 1) / kRows;
    parallel(panels, [&](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p) {
        int width = int(w.columns - p * kPanel < kPanel ? w.columns - p * kPanel : kPanel);
        for (int64_t t = 0; t < tiles; ++t) {
          int64_t from = first + count * t / tiles, to = first + count * (t + 1) / tiles;
          panel_rows<F>(int(to - from), w, p, x, from, out + from * ldo + p * kPanel / shrink, ldo, width, epilogue);
        }
      }
    });
  }
}

template <typename Out>
static void run_format(const Weight& w, const Activations& x, int64_t rows, Out* out, Epilogue epilogue) {
  switch (w.format) {
    case Format::bf16: return run<Bf16>(w, x, rows, out, epilogue);
    case Format::int8: return run<Int8>(w, x, rows, out, epilogue);
    case Format::int4: return run<Int4>(w, x, rows, out, epilogue);
  }
}

void linear(const Weight& w, const Activations& x, int64_t rows, bf16* out, Epilogue epilogue) {
  run_format(w, x, rows, out, epilogue);
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

// scratch holds rows * sgl_activation_bytes; epilogue: 0 none, 1 add to what `out` holds, 2 silu(gate) * up.
void sgl_linear(const Weight* w, const bf16* x, int64_t rows, void* scratch, bf16* out, int epilogue) {
  if (!place.team) return together([&] { sgl_linear(w, x, rows, scratch, out, epilogue); });
  run_format(*w, activations(*w, x, rows, scratch), rows, out, Epilogue(epilogue));
}

void sgl_linear_f32(const Weight* w, const bf16* x, int64_t rows, void* scratch, float* out) {
  if (!place.team) return together([&] { sgl_linear_f32(w, x, rows, scratch, out); });
  run_format(*w, activations(*w, x, rows, scratch), rows, out, Epilogue::none);
}
}
