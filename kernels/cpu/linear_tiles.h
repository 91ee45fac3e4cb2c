// The part of linear.cpp, which includes it, that multiplies with AMX; see there for the layout of weights.
#pragma once

#include <vector>

#include "tiles.h"

namespace sgl {

constexpr int kTall = 2 * kTileRows;        // rows of bytes that are computed together, at most
constexpr int kStep = kTall * kTileBytes;   // bytes of their inputs to a product of tiles

// Rows of bytes of whole inputs that go through a tile together, and through two.
template <typename F>
constexpr int kFlat = kTileRows / F::kDigits * F::kDigits;
template <typename F>
constexpr int kBoth = 2 * kFlat<F>;

// Rows of activations in the order in which tiles want them, [rows / block][bytes / 64][32][64], of which `block` rows
// are used, filled up with zeros. Where they lie a power of two apart they would push each other out of the cache.
class TileInputs {
 public:
  TileInputs(const Activations& x, int64_t bytes, int64_t first, int64_t last, int block)
      : steps_((bytes + kTileBytes - 1) / kTileBytes) {
    static thread_local std::vector<uint8_t> own;
    int64_t needed = (last - first + block - 1) / block * steps_ * kStep + 64;
    if (int64_t(own.size()) < needed) own.resize(needed);
    data_ = (uint8_t*)((uintptr_t(own.data()) + 63) / 64 * 64);
    for (int64_t row = first; row < last; ++row) {
      const uint8_t* from = (const uint8_t*)x.data + row * x.stride;
      uint8_t* to = data_ + (row - first) / block * steps_ * kStep + (row - first) % block * kTileBytes;
      for (int64_t k = 0; k < bytes; k += kTileBytes, to += kStep) {
        int64_t count = bytes - k < kTileBytes ? bytes - k : kTileBytes;
        std::memcpy(to, from + k, count);
        if (count < kTileBytes) std::memset(to + count, 0, kTileBytes - count);
      }
    }
    settle(data_);
  }

  // Those of a block.
  const uint8_t* at(int64_t index) const { return data_ + index * steps_ * kStep; }

 private:
  int64_t steps_;
  uint8_t* data_;
};

// The last lines of N words, fewer than a tile has, filled up with zeros.
template <int N>
struct Rest {
  alignas(64) uint8_t w[N][kTileRows][kTileBytes] = {};

  Rest(const uint8_t* lines, int count) {
    for (int k = 0; k < count; ++k)
      for (int c = 0; c < N; ++c) std::memcpy(w[c][k], lines + (k * kWords + c) * 64, 64);
    settle(w);
  }
};

// Sums `to` += activations `a` times weights `b`; the numbers of tiles become part of the instruction.
#define SGL_TILE_DOT(to, a, b)                                     \
  if constexpr (std::is_same_v<F, Bf16>) _tile_dpbf16ps(to, a, b); \
  else _tile_dpbsud(to, a, b)

// 64 bytes of input of up to sixteen rows, for N words, one or four. Words are `apart` bytes from each other, their
// lines `stride`.
template <typename F, int N>
static inline void flat_step(const uint8_t* x, const uint8_t* weights, int64_t apart, int64_t stride) {
  _tile_loadd(4, x, kTileBytes);
  _tile_loadd(6, weights, stride);
  SGL_TILE_DOT(0, 4, 6);
  if constexpr (N > 1) {
    _tile_loadd(7, weights + apart, stride);
    SGL_TILE_DOT(1, 4, 7);
    _tile_loadd(6, weights + 2 * apart, stride);
    SGL_TILE_DOT(2, 4, 6);
    _tile_loadd(7, weights + 3 * apart, stride);
    SGL_TILE_DOT(3, 4, 7);
  }
}

// The same of up to 32 rows, for one word or two.
template <typename F, int N>
static inline void tall_step(const uint8_t* x, const uint8_t* weights, int64_t apart, int64_t stride) {
  _tile_loadd(4, x, kTileBytes);
  _tile_loadd(6, weights, stride);
  SGL_TILE_DOT(0, 4, 6);
  _tile_loadd(5, x + kTileRows * kTileBytes, kTileBytes);
  SGL_TILE_DOT(2, 5, 6);
  if constexpr (N > 1) {
    _tile_loadd(7, weights + apart, stride);
    SGL_TILE_DOT(1, 4, 7);
    SGL_TILE_DOT(3, 5, 7);
  }
}

#undef SGL_TILE_DOT

constexpr int64_t kFarBytes = 256 << 10;  // a panel of that size does not stay in the nearer caches: ask for its lines

// Calls step(x, weights, apart, stride) for all `bytes` of input, with N words from `lines` on.
template <int N, typename S>
static inline void each_step(const uint8_t* in, const uint8_t* lines, int64_t bytes, const S& step) {
  constexpr int64_t kLine = kWords * 64;
  bool far = N == 2 && bytes / 4 * kLine > kFarBytes;  // the words of 32 rows only: they have the time
  for (; bytes >= kTileBytes; bytes -= kTileBytes, in += kStep, lines += kTileRows * kLine) {
    if (far)
      for (int k = kTileRows; k < 2 * kTileRows; ++k)
        for (int c = 0; c < N; ++c) __builtin_prefetch(lines + k * kLine + c * 64, 0, 3);
    step(in, lines, 64, kLine);
  }
  if (bytes > 0) step(in, Rest<N>(lines, int(bytes / 4)).w[0][0], kTileRows * 64, 64);
}

template <typename F>
static int64_t input_bytes(const Weight& w) {
  return std::is_same_v<F, Bf16> ? w.inner * 2 : w.group;
}

// The first line of a word.
template <typename F>
static const uint8_t* first_line(const Weight& w, int64_t column) {
  return w.data + column / kPanel * F::panel_bytes(w) + column % kPanel / kLanes * 64;
}

// Up to 32 rows of N words: their sums over `bytes` of input as tiles leave them, [rows, N * 16] float or int32; they
// begin anew or are added to.
template <typename F, int N>
static void tile_sums(const uint8_t* lines, const uint8_t* in, int64_t bytes, int rows, Tiles& tiles, float* sums,
                      bool anew = true) {
  if (rows <= kTileRows) {
    tiles.flat(rows);
    if (anew) clear_sums();
    else load_sums<N>(sums);
    each_step<N>(in, lines, bytes, flat_step<F, N>);
    store_sums<N>(sums);
    return;
  }
  constexpr int M = N > 1 ? 2 : 1;
  tiles.tall(rows - kTileRows);
  for (int c = 0; c < N; c += M) {
    float *low = sums + c * kLanes, *high = low + kTileRows * N * kLanes;
    clear_sums();
    if (!anew) {
      _tile_loadd(0, low, N * 64);
      _tile_loadd(2, high, N * 64);
      if constexpr (M > 1) {
        _tile_loadd(1, low + kLanes, N * 64);
        _tile_loadd(3, high + kLanes, N * 64);
      }
    }
    each_step<M>(in, lines + c * 64, bytes, tall_step<F, M>);
    _tile_stored(0, low, N * 64);
    _tile_stored(2, high, N * 64);
    if constexpr (M > 1) {
      _tile_stored(1, low + kLanes, N * 64);
      _tile_stored(3, high + kLanes, N * 64);
    }
  }
}

// `before` and what group g of a row adds to it, from the sums of its digits as tiles leave them, so far `apart`.
template <typename F>
static inline f32x16 with_group(const Weight& w, const uint8_t* end, int column, f32x16 before, const int32_t* sums,
                                int64_t apart, i32x16 zero, const Activations& x, int64_t row, int64_t g, int64_t count) {
  i32x16 digits[F::kDigits];
  for (int d = 0; d < F::kDigits; ++d)
    digits[d] = load(sums + d * apart) - zero * x.sums[(row * F::kDigits + d) * count + g];
  return F::added(w, end, column, before, digits, 1, x, row, g, count);
}

// As `rows_kernel`, for rows whose inputs are `in`, up to 32 rows of bytes.
template <typename F, int N>
static void tile_rows(const Weight& w, int64_t column, const Activations& x, const uint8_t* in, int64_t first, int rows,
                      Tiles& tiles, const Output& out) {
  alignas(64) float sums[kTall][N * kLanes];
  tile_sums<F, N>(first_line<F>(w, column), in, input_bytes<F>(w), rows * F::kDigits, tiles, sums[0]);
  settle(sums);
  const uint8_t* panel = w.data + column / kPanel * F::panel_bytes(w);
  for (int r = 0; r < rows; ++r) {
    f32x16 row[N];
    for (int c = 0; c < N; ++c) {
      if constexpr (std::is_same_v<F, Bf16>) {
        row[c] = load(sums[r] + c * kLanes);
      } else {
        int at = int(column % kPanel) + c * kLanes;
        const uint8_t* end = panel + F::line_bytes(w);
        const int32_t* own = (const int32_t*)sums[r * F::kDigits] + c * kLanes;
        row[c] = with_group<F>(w, end, at, f32x16{}, own, N * kLanes, F::zeros(w, end, at), x, first + r, 0, 1);
      }
    }
    finish<N>(w, column, first + r, row, out);
  }
}

template <typename F>
static void run_tiles(const Weight& w, const Activations& x, int64_t rows, const Output& out) {
  constexpr int D = F::kDigits, kRows = kBoth<F> / D;
  share(w, x.stride * D, rows, kRows, out, [&](int64_t first, int64_t last) {
    TileInputs inputs(x, input_bytes<F>(w), first * D, last * D, kBoth<F>);
    return [=, &w, &x, &out, tiles = Tiles()](int64_t column, bool whole) mutable {
      for (int64_t row = first; row < last; row += kRows) {
        const uint8_t* in = inputs.at((row - first) / kRows);
        int count = int(last - row < kRows ? last - row : kRows);
        if (whole) tile_rows<F, kWords>(w, column, x, in, row, count, tiles, out);
        else tile_rows<F, 1>(w, column, x, in, row, count, tiles, out);
      }
    };
  });
}

// Integers with scales for groups of inputs: every group is a product of its own. int4 becomes bytes first, those of a
// panel once for all rows.
template <typename F>
struct GroupTiles {
  // Where the weights of N words are: a group after the other, words and lines so far from each other.
  struct Lines {
    const uint8_t* at;
    int64_t pitch, apart, stride;
  };

  template <int N>
  static Lines lines(const Weight& w, int64_t column) {
    const uint8_t* block = first_line<F>(w, column);
    if constexpr (F::kBits == 8) return {block, F::group_bytes(w), 64, kWords * 64};
    static thread_local std::vector<uint8_t> own;
    int64_t quads = F::groups(w) * w.group / 4, needed = N * quads * 64 + 64;
    if (int64_t(own.size()) < needed) own.resize(needed);
    auto* to = (uint8_t*)((uintptr_t(own.data()) + 63) / 64 * 64);
    for (int64_t g = 0; g < F::groups(w); ++g, block += F::group_bytes(w))
      for (int64_t k = 0; k < w.group / 8; ++k)
        for (int c = 0; c < N; ++c) {
          i32x16 both = line(block + (k * kWords + c) * 64);
          uint8_t* pair = to + (c * quads + g * w.group / 4 + 2 * k) * 64;
          store((float*)pair, as_float(both & 0x0f0f0f0f));
          store((float*)(pair + 64), as_float((both >> 4) & 0x0f0f0f0f));
        }
    settle(to);
    return {to, w.group / 4 * 64, quads * 64, 64};
  }

  // The sums of group g: [rows, N * 16] in int32.
  template <int N>
  static inline void group_sums(const uint8_t* in, const Lines& lines, int64_t g, int64_t size, int32_t* sums) {
    int64_t from = g * size, apart = lines.apart, stride = lines.stride;
    const uint8_t* at = lines.at + g * lines.pitch;
    clear_sums();
    if (size % kTileBytes == 0) {
      for (int64_t k = from; k < from + size; k += kTileBytes, at += kTileRows * stride) {
        _tile_loadd(4, in + k / kTileBytes * kStep, kTileBytes);
        _tile_loadd(6, at, stride);
        _tile_dpbsud(0, 4, 6);
        if constexpr (N > 1) {
          _tile_loadd(6, at + apart, stride);
          _tile_dpbsud(1, 4, 6);
          _tile_loadd(6, at + 2 * apart, stride);
          _tile_dpbsud(2, 4, 6);
          _tile_loadd(6, at + 3 * apart, stride);
          _tile_dpbsud(3, 4, 6);
        }
      }
    } else {  // a group of 32 or 16 is a part of a step
      _tile_loadd(5, in + from / kTileBytes * kStep + from % kTileBytes, kTileBytes);
      _tile_loadd(7, at, stride);
      _tile_dpbsud(0, 5, 7);
      if constexpr (N > 1) {
        _tile_loadd(7, at + apart, stride);
        _tile_dpbsud(1, 5, 7);
        _tile_loadd(7, at + 2 * apart, stride);
        _tile_dpbsud(2, 5, 7);
        _tile_loadd(7, at + 3 * apart, stride);
        _tile_dpbsud(3, 5, 7);
      }
    }
    store_sums<N>((float*)sums);
    settle(sums);
  }

  // As `rows_kernel`, for rows whose inputs are `in`, up to sixteen rows of bytes.
  template <int N>
  static void rows(const Weight& w, int64_t column, const Lines& lines, const Activations& x, const uint8_t* in,
                   int64_t first, int rows, const Output& out) {
    int64_t groups = F::groups(w);
    f32x16 acc[kTileRows][N] = {};
    alignas(64) int32_t sums[kTileRows][N * kLanes];
    const uint8_t* end = w.data + column / kPanel * F::panel_bytes(w) + F::line_bytes(w);
    for (int64_t g = 0; g < groups; ++g, end += F::group_bytes(w)) {
      group_sums<N>(in, lines, g, w.group, sums[0]);
      for (int c = 0; c < N; ++c) {
        int at = int(column % kPanel) + c * kLanes;
        i32x16 zero = F::zeros(w, end, at);
        for (int r = 0; r < rows; ++r) {
          const int32_t* own = sums[r * F::kDigits] + c * kLanes;
          acc[r][c] = with_group<F>(w, end, at, acc[r][c], own, N * kLanes, zero, x, first + r, g, groups);
        }
      }
    }
    for (int r = 0; r < rows; ++r) finish<N>(w, column, first + r, acc[r], out);
  }

  template <int N>
  static void all_rows(const Weight& w, int64_t column, const Activations& x, const TileInputs& inputs, int64_t first,
                       int64_t last, Tiles& tiles, const Output& out) {
    constexpr int D = F::kDigits, kRows = kFlat<F> / D;
    Lines at = lines<N>(w, column);
    for (int64_t row = first; row < last; row += kRows) {
      int count = int(last - row < kRows ? last - row : kRows);
      int64_t place = (row - first) * D;
      const uint8_t* in = inputs.at(place / kBoth<F>) + place % kBoth<F> * kTileBytes;
      tiles.parted(count * D, w.group % kTileBytes ? w.group % kTileBytes : kTileBytes);
      rows<N>(w, column, at, x, in, row, count, out);
    }
  }

  static void run(const Weight& w, const Activations& x, int64_t rows, const Output& out) {
    constexpr int D = F::kDigits;
    share(w, x.stride * D, rows, kBoth<F> / D, out, [&](int64_t first, int64_t last) {
      TileInputs inputs(x, x.stride, first * D, last * D, kBoth<F>);
      return [=, &w, &x, &out, tiles = Tiles()](int64_t column, bool whole) mutable {
        if (whole) all_rows<kWords>(w, column, x, inputs, first, last, tiles, out);
        else all_rows<1>(w, column, x, inputs, first, last, tiles, out);
      };
    });
  }
};

// Codes become bf16 in a scratch of lines as those of a panel, a part of the inputs after the other, each for all rows.
template <typename F>
struct CodedTiles {
  using Code = typename F::Own;
  static constexpr int kInputsOfTile = kTileBytes / sizeof(bf16);
  static constexpr int kPart = 2048;           // inputs that are read out at a time for many rows: the second cache's
  static constexpr int kAhead = 1024 * F::kBits;  // bytes

  // What the rows of N words come to: sums of the group so far, and of those before with their scales.
  template <int N>
  struct Rows {
    float (*sums)[N * kLanes], (*total)[N * kLanes];

    explicit Rows(int64_t rows) {
      static thread_local std::vector<float> own;
      size_t needed = 2 * rows * N * kLanes + 16;
      if (own.size() < needed) own.resize(needed);
      sums = (float(*)[N * kLanes])((uintptr_t(own.data()) + 63) / 64 * 64);
      total = sums + rows;
    }

    // A group of the rows [first, last) ends.
    void add(const Weight& w, const uint8_t* end, int column, const float* group, int64_t first, int64_t last, bool anew) {
      settle(group);
      for (int c = 0; c < N; ++c) {
        f32x16 scale = F::scales(w, end, column + c * kLanes);
        const float* sum = group + c * kLanes;
        for (int64_t r = first; r < last; ++r, sum += N * kLanes) {
          float* to = total[r] + c * kLanes;
          store(to, (anew ? f32x16{} : load(to)) + load(sum) * scale);
        }
      }
    }
  };

  // `count` inputs of N words. What is read next is asked for, since little is read while tiles are multiplied.
  template <int N>
  static inline void read_out(const Code& code, const uint8_t* lines, int64_t count, uint8_t* to) {
    for (int64_t k = 0; k < count / F::kInputs; ++k)
      for (int c = 0; c < N; ++c) {
        const uint8_t* at = lines + (k * kWords + c) * 64;
        __builtin_prefetch(at + kAhead, 0, 2);
        i32x16 column = line(at);
        for (int p = 0; p < F::kPairs; ++p)
          store((float*)(to + ((k * F::kPairs + p) * kWords + c) * 64), as_float(code.at(column, p)));
      }
    settle(to);
  }

  // The sums of a group of up to sixteen rows: a step at a time, so that memory is read while tiles are multiplied.
  template <int N>
  static void few_sums(const Code& code, const uint8_t* lines, const uint8_t* in, int64_t count, int rows, Tiles& tiles,
                       float* sums) {
    constexpr int kSlot = kTileRows * kWords * 64;
    alignas(64) uint8_t slots[2][kSlot];
    tiles.flat(rows);
    clear_sums();
    for (int64_t from = 0; from < count; from += kInputsOfTile, in += kStep) {
      uint8_t* slot = slots[from / kInputsOfTile % 2];
      int64_t some = count - from < kInputsOfTile ? count - from : kInputsOfTile;
      if (some < kInputsOfTile) std::memset(slot, 0, kSlot);
      read_out<N>(code, lines + from / F::kInputs * kWords * 64, some, slot);
      flat_step<Bf16, N>(in, slot, 64, kWords * 64);
    }
    store_sums<N>(sums);
  }

  // The same of any number of rows, and their totals: a part of the inputs at a time, for all of them.
  template <int N>
  static void many_rows(const Weight& w, const Code& code, const uint8_t* lines, const uint8_t* end, int column,
                        const TileInputs& inputs, int64_t begin, int64_t count, int64_t rows, Tiles& tiles, Rows<N>& to) {
    alignas(64) static thread_local uint8_t part[kPart / 2 * kWords * 64];
    for (int64_t from = 0; from < count; from += kPart) {
      int64_t some = count - from < kPart ? count - from : kPart;
      read_out<N>(code, lines + from / F::kInputs * kWords * 64, some, part);
      for (int64_t r = 0; r < rows; r += kTall) {
        const uint8_t* in = inputs.at(r / kTall) + (begin + from) / kInputsOfTile * kStep;
        int64_t last = rows - r < kTall ? rows : r + kTall;
        float* sums = to.sums[count > kPart ? r : 0];  // one place stays in the first cache
        tile_sums<Bf16, N>(part, in, some * sizeof(bf16), int(last - r), tiles, sums, from == 0);
        if (from + some == count) to.add(w, end, column, sums, r, last, begin == 0);
      }
    }
  }

  template <int N>
  static void all_rows(const Weight& w, const Code& code, int64_t column, const TileInputs& inputs, int64_t first,
                       int64_t last, Tiles& tiles, const Output& out) {
    int64_t rows = last - first;
    const uint8_t* panel = w.data + column / kPanel * F::panel_bytes(w);
    int at = int(column % kPanel);
    Rows<N> to(rows);
    for (int64_t g = 0; g < F::groups(w); ++g, panel += F::group_bytes(w)) {
      int64_t begin = g * w.group, count = w.inner - begin < w.group ? w.inner - begin : w.group;
      const uint8_t *lines = panel + at / kLanes * 64, *end = panel + F::line_bytes(w);
      if (rows > kTileRows) {
        many_rows<N>(w, code, lines, end, at, inputs, begin, count, rows, tiles, to);
      } else {
        few_sums<N>(code, lines, inputs.at(0) + begin / kInputsOfTile * kStep, count, int(rows), tiles, to.sums[0]);
        to.add(w, end, at, to.sums[0], 0, rows, g == 0);
      }
    }
    for (int64_t r = 0; r < rows; ++r) {
      f32x16 row[N];
      for (int c = 0; c < N; ++c) row[c] = load(to.total[r] + c * kLanes);
      finish<N>(w, column, first + r, row, out);
    }
  }

  static void run(const Weight& w, const Activations& x, int64_t rows, const Output& out) {
    share(w, x.stride, rows, kTall, out, [&](int64_t first, int64_t last) {
      TileInputs inputs(x, w.inner * int64_t(sizeof(bf16)), first, last, kTall);
      return [=, &w, &out, code = Code(w), tiles = Tiles()](int64_t column, bool whole) mutable {
        if (whole) all_rows<kWords>(w, code, column, inputs, first, last, tiles, out);
        else all_rows<1>(w, code, column, inputs, first, last, tiles, out);
      };
    });
  }
};

// Whether there are enough rows for tiles to be faster, and groups that are whole steps or parts of one.
template <typename F>
static bool tiles_are_faster(const Weight& w, int64_t rows) {
  bool one_scale = F::kBits == 8 && F::groups(w) == 1;
  bool fits = one_scale || w.group % kTileBytes == 0 || w.group == 32 || w.group == 16;
  return fits && rows * F::kDigits >= (F::kBits == 8 ? 12 : 16);
}

template <typename F>
static void run_integer_tiles(const Weight& w, const Activations& x, int64_t rows, const Output& out) {
  if (F::kBits == 8 && F::groups(w) == 1) run_tiles<F>(w, x, rows, out);
  else GroupTiles<F>::run(w, x, rows, out);
}

}  // namespace sgl
