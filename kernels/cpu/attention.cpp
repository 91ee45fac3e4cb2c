// Attention over the paged KV cache, for decode, chunked prefill and everything between.
//
// Layout of one page of one head, for 16 tokens (larger pages are several of these):
//   K: [D/2][16 tokens][2 dims]   a word of sixteen lanes holds one pair of dims of sixteen tokens
//   V: [8 token pairs][D][2 tokens]
// Both products are then chains of bf16 pair dots without a horizontal reduction. The softmax is online (Milakov and
// Gimelshein 2018) over blocks of 64 tokens and splits of 1024, both aligned to absolute positions and merged in order,
// so a query's result depends neither on the chunk it came in nor on what it was batched with.
#include <vector>

#include "kernels.h"

namespace sgl {

constexpr int kBlock = 64;                  // tokens of a softmax block
constexpr int kSubs = kBlock / kSub;
constexpr int kSplit = 1024;                // tokens of a split
constexpr int kTile = 6;                    // query rows of a register tile
constexpr int kGroup = 48;                  // query rows that share one pass over the keys
constexpr int kMaxDim = 256;
constexpr float kMasked = -1e30f;           // finite, so that the difference of two masked scores is 0 and not NaN

// A group of query rows of one request and one KV head, over splits [first_split, last_split).
struct Item {
  int request, head, first_row, num_rows, first_split, last_split;
  int64_t scratch;              // where a partial result goes, -1: straight to the output
};

// Online-softmax state of a group; `out` is not normalised.
struct Partial {
  float top[kGroup], total[kGroup];
  float out[kGroup * kMaxDim];
};

static const bf16* sub_page(const Batch& b, const bf16* cache, const Item& item, int token) {
  int64_t page = b.page_table[item.request * b.max_pages + token / b.page_size];
  return cache + ((page * b.kv_heads + item.head) * b.page_size + token % b.page_size) * b.dim;
}

#if defined(__AVX512F__)
constexpr int kTileWords = 4;  // as in linear.cpp
#else
constexpr int kTileWords = 1;
#endif

template <int R>
static inline void scores(const bf16* const (&q)[kTile], const bf16* const (&k)[kSubs], int dim,
                          f32x16 (&s)[R][kSubs]) {
  constexpr int W = kTileWords;
  for (int first = 0; first < kSubs; first += W) {
    f32x16 sum[R][W] = {};
    for (int d = 0; d < dim / 2; ++d) {
      i32x16 keys[W];
      for (int c = 0; c < W; ++c) keys[c] = load((const int32_t*)(k[first + c] + d * 2 * kSub));
      for (int r = 0; r < R; ++r) {
        uint32_t pair;
        std::memcpy(&pair, q[r] + 2 * d, 4);
        for (int c = 0; c < W; ++c) sum[r][c] = dot_bf16(sum[r][c], keys[c], pair);
      }
    }
    for (int r = 0; r < R; ++r)
      for (int c = 0; c < W; ++c) s[r][first + c] = sum[r][c];
  }
}

// out[first .. first + 16 W] = out * decay + P V over the block's tokens.
template <int R, int W>
static inline void weighted_values(const bf16 (*p)[kBlock], const bf16* const (&v)[kSubs], int tokens, int dim, int first,
                                   const float* decay, float* out) {
  f32x16 acc[R][W];
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < W; ++c) acc[r][c] = load(out + r * kMaxDim + first + c * kLanes) * decay[r];
  for (int t = 0; t < tokens; t += 2) {
    const bf16* row = v[t / kSub] + (t % kSub) * dim + first * 2;
    i32x16 values[W];
    for (int c = 0; c < W; ++c) {
      values[c] = load((const int32_t*)(row + c * 2 * kLanes));
      if (t + 1 == tokens) values[c] &= 0xffff;  // the second token of the pair was never written
    }
    for (int r = 0; r < R; ++r) {
      uint32_t pair;
      std::memcpy(&pair, p[r] + t, 4);
      for (int c = 0; c < W; ++c) acc[r][c] = dot_bf16(acc[r][c], values[c], pair);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < W; ++c) store(out + r * kMaxDim + first + c * kLanes, acc[r][c]);
}

template <int R>
static void attend_tile(const Batch& b, const bf16* const (&q)[kTile], const int* positions, int begin, int tokens,
                        const bf16* const (&k)[kSubs], const bf16* const (&v)[kSubs], float* top, float* total,
                        float* out) {
  f32x16 s[R][kSubs];
  scores<R>(q, k, b.dim, s);
  alignas(64) bf16 p[R][kBlock];
  float decay[R];
  static const int32_t lanes[kLanes] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const i32x16 lane = load(lanes);
  for (int r = 0; r < R; ++r) {
    int last = positions[r], first = b.window ? last - b.window + 1 : 0;
    f32x16 best = splat(kMasked);
    for (int c = 0; c < kSubs; ++c) {
      f32x16 x = s[r][c] * b.scale;
      i32x16 token = lane + (begin + c * kSub);
      x = select((token <= last) & (token >= first), x, splat(kMasked));
      s[r][c] = x;
      best = max_lanes(best, x);
    }
    float peak = max_lane(best), before = top[r];
    top[r] = peak > before ? peak : before;
    decay[r] = exp_lanes(splat(before - top[r]))[0];
    f32x16 sum{};
    for (int c = 0; c < kSubs; ++c) {
      f32x16 e = exp_lanes(s[r][c] - top[r]);
      sum += e;
      store_bf16(&p[r][c * kSub], e);
    }
    total[r] = total[r] * decay[r] + sum_lanes(sum);
  }
  int d = 0;
  constexpr int step = kTileWords * kLanes;
  for (; d + step <= b.dim; d += step) weighted_values<R, kTileWords>(p, v, tokens, b.dim, d, decay, out);
  for (; d < b.dim; d += kLanes) weighted_values<R, 1>(p, v, tokens, b.dim, d, decay, out);
}

static void attend_split(const Batch& b, const Item& item, int split, Partial& part) {
  int length = b.seq_lens[item.request], from = b.cu_q[item.request];
  int share = b.heads / b.kv_heads, past = length - (b.cu_q[item.request + 1] - from);
  for (int r = 0; r < item.num_rows; ++r) part.top[r] = kMasked, part.total[r] = 0;
  std::memset(part.out, 0, sizeof(float) * kMaxDim * item.num_rows);
  int newest = past + (item.first_row + item.num_rows - 1) / share;
  int oldest = past + item.first_row / share;
  int begin = split * kSplit, end = begin + kSplit < newest + 1 ? begin + kSplit : newest + 1;
  if (b.window) {
    int visible = (oldest - b.window + 1) / kBlock * kBlock;
    begin = visible > begin ? visible : begin;
  }
  for (int block = begin; block < end; block += kBlock) {
    int tokens = length - block < kBlock ? length - block : kBlock;
    const bf16 *k[kSubs], *v[kSubs];
    for (int c = 0; c < kSubs; ++c) {
      int token = c * kSub < tokens ? block + c * kSub : block;
      k[c] = sub_page(b, b.k, item, token);
      v[c] = sub_page(b, b.v, item, token);
    }
    int tiles = (item.num_rows + kTile - 1) / kTile;
    for (int t = 0; t < tiles; ++t) {
      int first = item.num_rows * t / tiles, rows = item.num_rows * (t + 1) / tiles - first;
      const bf16* q[kTile];
      int positions[kTile];
      for (int r = 0; r < rows; ++r) {
        int row = item.first_row + first + r;
        positions[r] = past + row / share;
        q[r] = b.q + (from + row / share) * b.ldq + (item.head * share + row % share) * b.dim;
      }
      if (block > positions[rows - 1]) continue;
      float *top = part.top + first, *total = part.total + first, *out = part.out + first * kMaxDim;
      switch (rows) {
        case 1: attend_tile<1>(b, q, positions, block, tokens, k, v, top, total, out); break;
        case 2: attend_tile<2>(b, q, positions, block, tokens, k, v, top, total, out); break;
        case 3: attend_tile<3>(b, q, positions, block, tokens, k, v, top, total, out); break;
        case 4: attend_tile<4>(b, q, positions, block, tokens, k, v, top, total, out); break;
        case 5: attend_tile<5>(b, q, positions, block, tokens, k, v, top, total, out); break;
        default: attend_tile<6>(b, q, positions, block, tokens, k, v, top, total, out); break;
      }
    }
  }
}

// into += part, in the order of the splits.
static void merge(const Batch& b, int rows, Partial& into, const Partial& part) {
  for (int r = 0; r < rows; ++r) {
    float top = into.top[r] > part.top[r] ? into.top[r] : part.top[r];
    float a = exp_lanes(splat(into.top[r] - top))[0], c = exp_lanes(splat(part.top[r] - top))[0];
    into.top[r] = top;
    into.total[r] = into.total[r] * a + part.total[r] * c;
    for (int d = 0; d < b.dim; d += kLanes) {
      float* x = into.out + r * kMaxDim + d;
      store(x, load(x) * a + load(part.out + r * kMaxDim + d) * c);
    }
  }
}

static void finish(const Batch& b, const Item& item, const Partial& part) {
  int share = b.heads / b.kv_heads;
  for (int r = 0; r < item.num_rows; ++r) {
    int row = item.first_row + r;
    int64_t token = b.cu_q[item.request] + row / share;
    bf16* out = b.out + (token * b.heads + item.head * share + row % share) * b.dim;
    float inverse = 1.0f / part.total[r];
    for (int d = 0; d < b.dim; d += kLanes) store_bf16(out + d, load(part.out + r * kMaxDim + d) * inverse);
  }
}

void attend(const Batch& b) {
  if (!place.team) return together([&] { attend(b); });
  std::vector<Item> items;
  std::vector<Item> merged;
  int share = b.heads / b.kv_heads;
  int64_t scratch = 0;
  for (int i = 0; i < b.rows; ++i) {
    int tokens = b.cu_q[i + 1] - b.cu_q[i];
    int splits = (b.seq_lens[i] + kSplit - 1) / kSplit;
    for (int h = 0; h < b.kv_heads; ++h)
      for (int row = tokens * share; row > 0; row -= kGroup) {
        int first = row > kGroup ? row - kGroup : 0;
        // A lone group's splits go to different threads; in a long prompt there are groups enough.
        if (splits > 1 && tokens * share <= kGroup) {
          for (int s = 0; s < splits; ++s) items.push_back({i, h, first, row - first, s, s + 1, scratch + s});
          merged.push_back({i, h, first, row - first, 0, splits, scratch});
          scratch += splits;
        } else {
          items.push_back({i, h, first, row - first, 0, splits, -1});
        }
      }
  }
  Partial* partials = nullptr;
  if (scratch)
    partials = (Partial*)once([&]() -> void* {
      static thread_local std::vector<Partial> pool;  // kept from call to call: it is megabytes
      if (int64_t(pool.size()) < scratch) pool.resize(scratch);
      return pool.data();
    });
  dynamic(int64_t(items.size()), [&](int64_t n) {
    const Item& item = items[n];
    if (item.scratch >= 0) return attend_split(b, item, item.first_split, partials[item.scratch]);
    static thread_local Partial sum, part;
    attend_split(b, item, 0, sum);
    int past = b.seq_lens[item.request] - (b.cu_q[item.request + 1] - b.cu_q[item.request]);
    int newest = past + (item.first_row + item.num_rows - 1) / share;
    for (int s = 1; s < item.last_split && s * kSplit <= newest; ++s) {
      attend_split(b, item, s, part);
      merge(b, item.num_rows, sum, part);
    }
    finish(b, item, sum);
  });
  dynamic(int64_t(merged.size()), [&](int64_t n) {
    const Item& item = merged[n];
    Partial& sum = partials[item.scratch];
    for (int s = 1; s < item.last_split; ++s) merge(b, item.num_rows, sum, partials[item.scratch + s]);
    finish(b, item, sum);
  });
}

}  // namespace sgl

using namespace sgl;

extern "C" {

void sgl_attention(const bf16* q, int64_t ldq, const bf16* k, const bf16* v, const int32_t* cu_q,
                   const int32_t* seq_lens, const int32_t* page_table, int64_t max_pages, int rows, int heads,
                   int kv_heads, int dim, int page_size, float scale, int window, bf16* out) {
  attend({q, ldq, k, v, cu_q, seq_lens, page_table, max_pages, rows, heads, kv_heads, dim, page_size, scale, window,
          out});
}
}
