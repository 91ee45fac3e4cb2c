// Linear layers over packed weights.
//
// Weights are packed once into panels of 64 columns, in which one cache line holds sixteen outputs' next inputs:
//   bf16: [K/2][64][2]
//   int8: for every group of inputs, which may be all of them, [G/4][64][4] bytes of value + 128,
//   int4: for every group of inputs [G/8][64][4] bytes, whose low halves are inputs 0..3 of eight and high halves 4..7,
//         then of both [64] scales and, if stored, [64] bytes of zero points or [64] floats that are added to weights
//   float8, code4: as int8 and int4, the inputs of a word in an order of their own (codes.h)
// Integer products take activations as signed bytes (quantize.cpp), one for each, rounded, or three, which is exact,
// and correct the weights' zero point by their sum. Every output element is one chain of sums in the order of k,
// whatever the number of rows, so the answer of a row does not depend on what it was batched with. Codes become bf16 as
// they are multiplied, without their scales, which the sum of a group gets.
//
// With AMX a tile of weights is one word of sixteen lines of a panel. bf16 is multiplied by tiles always, as codes are,
// since their sums round otherwise; int8 and int4, whose sums are exact, where there are enough rows for it to be faster.
#include <type_traits>

#include "codes.h"
#include "kernels.h"

namespace sgl {

constexpr int kPanel = 64;
constexpr int kWords = kPanel / kLanes;
#if defined(__AVX512F__)
constexpr int kMostWords = kWords;  // that a tile is computed with at a time: 6 rows make 24 accumulators of 32 registers
#else
constexpr int kMostWords = 1;
#endif

template <int R, int W>
using Sums = f32x16[R][W];

static inline uint32_t word(const void* p) {
  uint32_t out;
  std::memcpy(&out, p, 4);
  return out;
}

static inline i32x16 line(const uint8_t* p) { return load((const int32_t*)p); }

// Weights that are asked for while others are computed with. When several tiles of rows pass over a panel, only the
// first would wait for memory, so each asks for its part of the next panel. A single pass leaves it to the processor,
// which follows one stream better by itself (3 to 11% over asking 8 KiB ahead, all formats, one row).
struct Ahead {
  const uint8_t* at;
  int lines;  // of the four of a step

  Ahead(const uint8_t* panel, int64_t panel_bytes, int words, int64_t tile, int64_t tiles) {
    lines = words < kWords || tiles == 1 ? 0 : tiles < 4 ? 2 : 1;
    at = panel + panel_bytes + tile * panel_bytes * lines / 4;
  }

  // The step whose lines begin at an offset in the panel.
  void ask(int64_t offset) const {
    if (lines == 0) return;
    const uint8_t* p = at + offset * lines / 4;
    __builtin_prefetch(p, 0, 2);
    if (lines == 2) __builtin_prefetch(p + 64, 0, 2);
  }
};

// A format says how large a panel is, how many rows to compute at a time, and computes R rows of N words of one panel,
// from word `begin` on.
struct Bf16 {
  static constexpr int kDigits = 1;
  static constexpr int kRows = 6;

  static int64_t panel_bytes(const Weight& w) { return w.inner * kPanel * 2; }

  template <int R, int N>
  static inline void tile(const Weight& w, const uint8_t* panel, const Activations& x, int64_t row, int begin,
                          const Ahead& ahead, Sums<R, N>& out) {
    constexpr int W = N < kMostWords ? N : kMostWords;
    const uint8_t* in = (const uint8_t*)x.data + row * x.stride;
    for (int first = 0; first < N; first += W) {
      f32x16 sum[R][W] = {};
      for (int64_t k = 0; k < w.inner / 2; ++k) {
        int64_t offset = (k * kWords + begin + first) * 64;
        i32x16 column[W];
        for (int c = 0; c < W; ++c) column[c] = line(panel + offset + c * 64);
        ahead.ask(offset);
        for (int r = 0; r < R; ++r)
          for (int c = 0; c < W; ++c) sum[r][c] = dot_bf16(sum[r][c], column[c], word(in + r * x.stride + 4 * k));
      }
      for (int r = 0; r < R; ++r)
        for (int c = 0; c < W; ++c) out[r][first + c] = sum[r][c];
    }
  }
};

// A panel of numbers of 8 or 4 bits with scales for groups of inputs.
template <int Bits>
struct Grouped {
  static constexpr int kBits = Bits;
  static constexpr int kInputs = 32 / Bits;  // of a line

  static int64_t groups(const Weight& w) { return (w.inner + w.group - 1) / w.group; }
  static int64_t line_bytes(const Weight& w) { return int64_t(w.group) / kInputs * kPanel * 4; }  // of a group
  static int64_t scale_bytes(const Weight& w) { return w.scales == Scales::fp32 ? 4 : 2; }
  static int64_t zero_bytes(const Weight& w) {
    return w.zeros == Zeros::offsets ? 4 : w.zeros == Zeros::points ? 1 : 0;
  }
  static int64_t group_bytes(const Weight& w) { return line_bytes(w) + kPanel * (scale_bytes(w) + zero_bytes(w)); }
  static int64_t panel_bytes(const Weight& w) { return groups(w) * group_bytes(w); }

  // The scales of sixteen columns from `column` on, of those at `end`; behind them stand zero points or offsets.
  static f32x16 scales(const Weight& w, const uint8_t* end, int column) {
    if (w.scales == Scales::fp32) return load((const float*)end + column);
    const uint16_t* half = (const uint16_t*)end + column;
    return w.scales == Scales::fp16 ? load_fp16(half) : load_bf16(half);
  }
};

// Integers, and inputs of so many digits.
template <int Bits, int Digits>
struct Integers : Grouped<Bits> {
  using Grouped<Bits>::groups, Grouped<Bits>::line_bytes, Grouped<Bits>::group_bytes, Grouped<Bits>::scale_bytes;
  using Grouped<Bits>::scales, Grouped<Bits>::kInputs;
  static constexpr int kDigits = Digits;
  static constexpr int kRows = Digits > 1 ? 2 : Bits == 4 ? 8 : 6;  // int4: more, since they share the unpacking
  static constexpr int kMiddle = 1 << (Bits - 1);

  static i32x16 zeros(const Weight& w, const uint8_t* end, int column) {
    if (w.zeros == Zeros::points) return widen(end + kPanel * scale_bytes(w) + column);
    return i32x16{} + (w.zeros == Zeros::middle ? kMiddle : 0);
  }

  // The sum of an input from those of its digits; products with powers of two round nothing.
  static f32x16 whole(const i32x16* sums, int apart) {
    if constexpr (Digits == 1) return to_float(sums[0]);
    else return to_float(sums[2 * apart]) * 65536.0f + (to_float(sums[apart]) * 256.0f + to_float(sums[0]));
  }

  // `before` and what group g of a row adds to it; `sums` are those of its digits.
  static f32x16 added(const Weight& w, const uint8_t* end, int column, f32x16 before, const i32x16* sums, int apart,
                      const Activations& x, int64_t row, int64_t g, int64_t count) {
    float step = x.scales[row * count + g];
    f32x16 after = before + whole(sums, apart) * (scales(w, end, column) * step);
    if (w.zeros != Zeros::offsets) return after;
    const int32_t* own = x.sums + row * Digits * count + g;
    float total = float(own[0]);
    if constexpr (Digits > 1) total = float(own[2 * count]) * 65536.0f + (float(own[count]) * 256.0f + total);
    return after + load((const float*)(end + kPanel * scale_bytes(w)) + column) * (total * step);
  }

  template <int R, int N>
  static inline void tile(const Weight& w, const uint8_t* panel, const Activations& x, int64_t row, int begin,
                          const Ahead& ahead, Sums<R, N>& out) {
    constexpr int A = R * Digits, kMost = Bits == 8 || A <= 4 || kMostWords == 1 ? kMostWords : 2;
    constexpr int W = N < kMost ? N : kMost;
    int64_t count = groups(w);
    for (int r = 0; r < R; ++r)
      for (int c = 0; c < N; ++c) out[r][c] = f32x16{};
    for (int64_t g = 0; g < count; ++g) {
      const uint8_t *block = panel + g * group_bytes(w), *end = block + line_bytes(w);
      const uint8_t* in = (const uint8_t*)x.data + row * Digits * x.stride + g * w.group;
      for (int first = 0; first < N; first += W) {
        i32x16 sum[A][W];
        for (int c = 0; c < W; ++c) {
          i32x16 zero = zeros(w, end, (begin + first + c) * kLanes);
          for (int a = 0; a < A; ++a) sum[a][c] = i32x16{} - zero * x.sums[(row * Digits + a) * count + g];
        }
        for (int64_t k = 0; k < w.group / kInputs; ++k) {
          const uint8_t* lines = block + (k * kWords + begin + first) * 64;
          if constexpr (Bits == 8) {
            i32x16 column[W];
            for (int c = 0; c < W; ++c) column[c] = line(lines + c * 64);
            ahead.ask(lines - panel);
            for (int a = 0; a < A; ++a)
              for (int c = 0; c < W; ++c) sum[a][c] = dot_bytes(sum[a][c], column[c], word(in + a * x.stride + 4 * k));
          } else {
            i32x16 low[W], high[W];
            for (int c = 0; c < W; ++c) {
              i32x16 both = line(lines + c * 64);
              low[c] = both & 0x0f0f0f0f;
              high[c] = (both >> 4) & 0x0f0f0f0f;
            }
            ahead.ask(lines - panel);
            for (int a = 0; a < A; ++a) {
              const uint8_t* bytes = in + a * x.stride + 8 * k;
              for (int c = 0; c < W; ++c)
                sum[a][c] = dot_bytes(dot_bytes(sum[a][c], low[c], word(bytes)), high[c], word(bytes + 4));
            }
          }
        }
        for (int r = 0; r < R; ++r)
          for (int c = 0; c < W; ++c)
            out[r][first + c] = added(w, end, (begin + first + c) * kLanes, out[r][first + c], &sum[r * Digits][c], W, x,
                                      row + r, g, count);
      }
    }
  }
};

// Numbers that are read out and multiplied with inputs in bf16.
template <typename Code>
struct Coded : Grouped<Code::kBits> {
  using Own = Code;
  using Layout = Grouped<Code::kBits>;
  static constexpr int kDigits = 1;
  static constexpr int kRows = 6;
  static constexpr int kPairs = Layout::kInputs / 2;  // of inputs of a line

  template <int R, int N>
  static inline void tile(const Weight& w, const uint8_t* panel, const Activations& x, int64_t row, int begin,
                          const Ahead& ahead, Sums<R, N>& out) {
    constexpr int W = N < kMostWords ? N : kMostWords;
    const Code code(w);
    for (int r = 0; r < R; ++r)
      for (int c = 0; c < N; ++c) out[r][c] = f32x16{};
    for (int64_t g = 0; g < Layout::groups(w); ++g) {
      const uint8_t *block = panel + g * Layout::group_bytes(w), *end = block + Layout::line_bytes(w);
      int64_t left = w.inner - g * w.group, lines = (left < w.group ? left : w.group) / Layout::kInputs;
      const uint8_t* in = (const uint8_t*)x.data + row * x.stride + g * w.group * sizeof(bf16);
      for (int first = 0; first < N; first += W) {
        f32x16 sum[R][W] = {};
        for (int64_t k = 0; k < lines; ++k) {
          const uint8_t* at = block + (k * kWords + begin + first) * 64;
          ahead.ask(at - panel);
          for (int c = 0; c < W; ++c)
            for (int p = 0; p < kPairs; ++p) {
              Inputs pair = code.at(line(at + c * 64), p);
              for (int r = 0; r < R; ++r) sum[r][c] = dot(sum[r][c], pair, word(in + r * x.stride + 4 * (k * kPairs + p)));
            }
        }
        for (int r = 0; r < R; ++r)
          for (int c = 0; c < W; ++c) out[r][first + c] += sum[r][c] * Layout::scales(w, end, (begin + first + c) * kLanes);
      }
    }
  }
};

// Where results go: bf16, or float without an epilogue.
struct Output {
  void* data;
  int64_t stride;  // elements from row to row
  bool is_float;
  Epilogue epilogue;

  void put(int64_t place, f32x16 value, int count) const {
    if (is_float) {
      float* to = (float*)data + place;
      if (count >= kLanes) store(to, value);
      else for (int i = 0; i < count; ++i) to[i] = value[i];
    } else {
      bf16* to = (bf16*)data + place;
      if (count >= kLanes) store_bf16(to, value);
      else for (int i = 0; i < count; ++i) to[i] = to_bf16(value[i]);
    }
  }

  f32x16 get(int64_t place, int count) const {
    const bf16* from = (const bf16*)data + place;
    if (count >= kLanes) return load_bf16(from);
    f32x16 out{};
    for (int i = 0; i < count; ++i) out[i] = to_float(from[i]);
    return out;
  }
};

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

// What becomes of the sums of N words of one row, the first of them at `column`.
template <int N>
static inline void finish(const Weight& w, int64_t column, int64_t row, f32x16 (&sums)[N], const Output& out) {
  int columns = int(w.columns - column < N * kLanes ? w.columns - column : N * kLanes);
  if (w.bias)
    for (int c = 0; c < N; ++c) sums[c] += load(w.bias + column + c * kLanes);
  int64_t begin = row * out.stride;
  if constexpr (N == kWords) {
    if (out.epilogue == Epilogue::silu_mul) {
      for (int c = 0; c < kWords / 2; ++c) {
        f32x16 gate = round_bf16(silu(round_bf16(sums[c])));
        out.put(begin + column / 2 + c * kLanes, gate * round_bf16(sums[c + kWords / 2]), columns / 2 - c * kLanes);
      }
      return;
    }
  }
  for (int c = 0; c < N && c * kLanes < columns; ++c) {
    int64_t place = begin + column + c * kLanes;
    int count = columns - c * kLanes;
    if (out.epilogue == Epilogue::residual) sums[c] = round_bf16(sums[c]) + out.get(place, count);
    out.put(place, sums[c], count);
  }
}

// One register tile: R rows of N words of the weight, the first of them at `column`.
template <typename F, int R, int N>
static void rows_kernel(const Weight& w, int64_t column, const Activations& x, int64_t first, int64_t t, int64_t tiles,
                        const Output& out) {
  Sums<R, N> acc;
  const uint8_t* panel = w.data + column / kPanel * F::panel_bytes(w);
  F::template tile<R, N>(w, panel, x, first, int(column % kPanel / kLanes), {panel, F::panel_bytes(w), N, t, tiles},
                         acc);
  for (int r = 0; r < R; ++r) finish<N>(w, column, first + r, acc[r], out);
}

// f(a constant) for the number of rows at hand.
template <int R, typename G>
static inline void each_row_count(int rows, const G& f) {
  if constexpr (R > 0) {
    if (rows == R) return f(std::integral_constant<int, R>{});
    each_row_count<R - 1>(rows, f);
  }
}

// Rows at a time of the words of a panel that two threads share.
constexpr int kEdgeRows = 4;

// Tile t of the rows [first, end).
template <typename F, int N>
static void some_rows(const Weight& w, int64_t column, const Activations& x, int64_t first, int64_t end, int64_t t,
                      int64_t tiles, const Output& out) {
  int64_t from = first + (end - first) * t / tiles, to = first + (end - first) * (t + 1) / tiles;
  each_row_count<N == kWords ? F::kRows : kEdgeRows>(int(to - from), [&](auto count) {
    rows_kernel<F, decltype(count)::value, N>(w, column, x, from, t, tiles, out);
  });
}

// Rows go through in blocks whose inputs stay in the second-level cache while all panels pass over them.
constexpr int64_t kBlockBytes = 512 << 10;

// For blocks of rows f(first, last) gives every thread what computes a column: (column, whether a whole panel or a word).
// Threads share the work by words, since a narrow weight has few panels; a gate and its up must stay together.
template <typename F>
static void share(const Weight& w, int64_t stride, int64_t rows, int row_unit, const Output& out, const F& f) {
  int64_t block = kBlockBytes / stride / row_unit * row_unit;
  if (block < 96) block = 96;
  int64_t unit = out.epilogue == Epilogue::silu_mul ? kPanel : kLanes, per_panel = kPanel / unit;
  for (int64_t first = 0; first < rows; first += block) {
    int64_t last = rows - first < block ? rows : first + block;
    parallel((w.columns + unit - 1) / unit, [&](int64_t begin, int64_t end) {
      auto compute = f(first, last);
      for (int64_t i = begin, next; i < end; i = next) {
        bool whole = i % per_panel == 0 && i + per_panel <= end;
        next = i + (whole ? per_panel : 1);
        compute(i * unit, whole);
      }
    });
  }
}

template <typename F>
static void run(const Weight& w, const Activations& x, int64_t rows, const Output& out) {
  share(w, x.stride, rows, F::kRows, out, [&](int64_t first, int64_t last) {
    int64_t tiles = (last - first + F::kRows - 1) / F::kRows, edge_tiles = (last - first + kEdgeRows - 1) / kEdgeRows;
    return [=, &w, &x, &out](int64_t column, bool whole) {
      if (whole)
        for (int64_t t = 0; t < tiles; ++t) some_rows<F, kWords>(w, column, x, first, last, t, tiles, out);
      else
        for (int64_t t = 0; t < edge_tiles; ++t) some_rows<F, 1>(w, column, x, first, last, t, edge_tiles, out);
    };
  });
}

}  // namespace sgl

#if defined(__AMX_TILE__)
#include "linear_tiles.h"
#endif

namespace sgl {

template <typename F>
static void run_integers(const Weight& w, const Activations& x, int64_t rows, const Output& out) {
#if defined(__AMX_TILE__)
  if (tiles_are_faster<F>(w, rows)) return run_integer_tiles<F>(w, x, rows, out);
#endif
  run<F>(w, x, rows, out);
}

template <typename F>
static void run_floats(const Weight& w, const Activations& x, int64_t rows, const Output& out) {
#if defined(__AMX_TILE__)
  if constexpr (std::is_same_v<F, Bf16>) run_tiles<F>(w, x, rows, out);
  else CodedTiles<F>::run(w, x, rows, out);
#else
  run<F>(w, x, rows, out);
#endif
}

static void run(const Weight& w, const Activations& x, int64_t rows, const Output& out) {
  bool rounded = w.digits == 1;
  switch (w.format) {
    case Format::int8: return (rounded ? run_integers<Integers<8, 1>> : run_integers<Integers<8, 3>>)(w, x, rows, out);
    case Format::int4: return (rounded ? run_integers<Integers<4, 1>> : run_integers<Integers<4, 3>>)(w, x, rows, out);
    case Format::bf16: return run_floats<Bf16>(w, x, rows, out);
    case Format::float8: return run_floats<Coded<Float8>>(w, x, rows, out);
    case Format::code4: return run_floats<Coded<Code4>>(w, x, rows, out);
  }
}

void linear(const Weight& w, const Activations& x, int64_t rows, bf16* out, Epilogue epilogue) {
  run(w, x, rows, {out, epilogue == Epilogue::silu_mul ? w.columns / 2 : w.columns, false, epilogue});
}

}  // namespace sgl

using namespace sgl;

// Which inputs the bytes of a word hold, or its low and then its high halves: of codes and of integers.
static constexpr int8_t kOrders[2][2][8] = {{{0, 2, 1, 3}, {0, 4, 1, 5, 2, 6, 3, 7}},
                                            {{0, 1, 2, 3}, {0, 1, 2, 3, 4, 5, 6, 7}}};

extern "C" {

// Rows `order` of weight [any, inner], row-major, -> panels. Inner must be even. A column whose number is negative is
// zero, and so are those that the last panel lacks.
void sgl_pack_bf16(const bf16* weight, const int64_t* order, int64_t columns, int64_t inner, bf16* packed) {
  constexpr int kPairs = 16;  // of inputs at a time: a cache line of every row
  int64_t panels = (columns + kPanel - 1) / kPanel, pairs = inner / 2;
  parallel(panels, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p)
      for (int64_t first = 0; first < pairs; first += kPairs)
        for (int j = 0; j < kPanel; ++j) {
          int64_t n = p * kPanel + j, row = n < columns ? order[n] : -1;
          bf16* to = packed + ((p * pairs + first) * kPanel + j) * 2;
          for (int64_t k = 0; k < kPairs && first + k < pairs; ++k, to += 2 * kPanel)
            if (row < 0) std::memset(to, 0, 4);
            else std::memcpy(to, weight + row * inner + 2 * (first + k), 4);
        }
  });
}

// Values q [columns, inner] of 8 or 4 bits without sign, scales [columns, groups] in the weight's type, and zero points
// or offsets of the same shape or null -> panels. Of the weight everything but its address must be there.
void sgl_pack_groups(const Weight* weight, const uint8_t* q, const uint8_t* scales, const uint8_t* zeros,
                       uint8_t* packed) {
  const Weight& w = *weight;
  using Any = Grouped<8>;  // scales and zero points do not depend on the bits
  int bits = w.format == Format::int8 || w.format == Format::float8 ? 8 : 4, middle = w.is_integer() ? 1 << (bits - 1) : 0;
  const int8_t* order = kOrders[w.is_integer()][bits == 4];
  int64_t panels = (w.columns + kPanel - 1) / kPanel, groups = Any::groups(w);
  int64_t bytes = bits == 8 ? Any::group_bytes(w) : Grouped<4>::group_bytes(w);
  auto value = [&](int64_t n, int64_t k) { return n < w.columns && k < w.inner ? q[n * w.inner + k] : middle; };
  auto put = [&](uint8_t* to, const uint8_t* from, int64_t n, int64_t at, int64_t size) {
    if (n < w.columns && size > 0) std::memcpy(to, from + at * size, size);
    else std::memset(to, 0, size);
  };
  parallel(panels * groups, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      uint8_t *block = packed + i * bytes, *tail = block + kPanel * w.group * bits / 8;
      for (int j = 0; j < kPanel; ++j) {
        int64_t n = i / groups * kPanel + j, first = i % groups * w.group, at = n * groups + i % groups;
        for (int64_t k = 0; k < w.group; k += 32 / bits)
          for (int b = 0; b < 4; ++b) {
            int low = value(n, first + k + order[b]), high = bits == 4 ? value(n, first + k + order[4 + b]) << 4 : 0;
            block[(k * bits / 32 * kPanel + j) * 4 + b] = uint8_t(low | high);
          }
        put(tail + j * Any::scale_bytes(w), scales, n, at, Any::scale_bytes(w));
        put(tail + kPanel * Any::scale_bytes(w) + j * Any::zero_bytes(w), zeros, n, at, Any::zero_bytes(w));
      }
    }
  });
}

// scratch holds rows * sgl_activation_bytes; epilogue: 0 none, 1 add to what `out` holds, 2 silu(gate) * up.
void sgl_linear(const Weight* w, const bf16* x, int64_t rows, void* scratch, bf16* out, int epilogue) {
  if (!place.team) return together([&] { sgl_linear(w, x, rows, scratch, out, epilogue); });
  linear(*w, activations(*w, x, rows, scratch), rows, out, Epilogue(epilogue));
}

void sgl_linear_f32(const Weight* w, const bf16* x, int64_t rows, void* scratch, float* out) {
  if (!place.team) return together([&] { sgl_linear_f32(w, x, rows, scratch, out); });
  run(*w, activations(*w, x, rows, scratch), rows, {out, w->columns, true, Epilogue::none});
}
}
