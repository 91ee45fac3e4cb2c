// Attention over the paged KV cache, for decode, chunked prefill and everything between.
//
// Layout of one page of one head, for 16 tokens (larger pages are several of these):
//   K: [D/2][16 tokens][2 dims]   a word of sixteen lanes holds one pair of dims of sixteen tokens
//   V: [8 token pairs][D][2 tokens]
// Both products are then chains of bf16 pair dots without a horizontal reduction. An int8 cache has the same order, its
// numbers plus 128 and a float32 scale per token beside them; bytes are widened to bf16, which holds them exactly, once
// for all the queries of a pass. Of latents, whose values are the beginnings of their keys, K alone is stored; a
// block's V is made from it for all the queries of a pass.
//
// The softmax is online (Milakov and Gimelshein 2018) over blocks of tokens and splits of several blocks, both aligned
// to absolute positions and merged in order. Keys that a query does not see add exact zeros. So a query's result
// depends neither on the chunk it came in nor on what it was batched with, and requests that share pages can share the
// work: the blocks of a common prefix are read once for the queries of all of them, which then go on with their own.
#include <algorithm>
#include <utility>
#include <vector>

#include "kernels.h"
#if defined(__AMX_TILE__)
#include "tiles.h"
#endif

namespace sgl {

constexpr int kBlock = 64;                  // tokens of a softmax block
constexpr int kSubs = kBlock / kSub;
constexpr int kSplit = 512;                 // tokens of a split
constexpr int kPack = 48;                   // query rows that share one pass over the keys
constexpr int kMaxDim = 576;                // of a key
constexpr int64_t kMaxScratch = 16 << 20;   // floats: partial results of splits that run at the same time
constexpr float kLog2e = 1.44269504088896341f;
// Scores are kept in units of log 2. A masked one is finite, so that its difference to another is not NaN, and so far
// below the least maximum that the difference of the two is still an exponent of zero.
constexpr float kMasked = -1e30f, kLeast = -1e20f;

// Query rows of a register tile, and the words of every row: 24 accumulators of 32 registers, or 12 half words of 16.
#if defined(__AMX_TILE__)
constexpr int kTile = kTileRows;
constexpr int tile_words(int) { return 1; }
#elif defined(__AVX512F__)
constexpr int kTile = 12;
constexpr int tile_words(int rows) { return rows > 6 ? 2 : 4; }
#else
constexpr int kTile = 6;
constexpr int tile_words(int) { return 1; }
#endif

// 2^x for x <= 0: exactly 1 at 0, 0 far below.
static inline f32x16 exp2_lanes(f32x16 x) {
#if defined(__AVX512F__)
  f32x16 n = (f32x16)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  f32x16 low = splat(-126.0f);
  i32x16 dead = x < low;
  x = select(dead, low, x);
  f32x16 shifted = x + 12582912.0f;  // 1.5 * 2^23: the sum's low bits are round(x)
  f32x16 n = shifted - 12582912.0f;
#endif
  f32x16 r = x - n;
  f32x16 p = r * 1.3264727e-3f + 9.6715128e-3f;
  p = p * r + 5.5507337e-2f;
  p = p * r + 2.4022242e-1f;
  p = p * r + 6.9314698e-1f;
  p = p * r + 1.0f;
#if defined(__AVX512F__)
  return (f32x16)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
  i32x16 bits = as_int(p) + ((as_int(shifted) - 0x4b400000) << 23);
  return as_float(bits & ~dead);
#endif
}

static inline float exp2_lane(float x) { return exp2_lanes(splat(x))[0]; }

// limit * tanh(x / limit), times log2(e).
static inline f32x16 cap_lanes(f32x16 x, float limit) {
  i32x16 negative = x < 0.0f;
  f32x16 e = exp2_lanes(select(negative, x, -x) * (2.0f * kLog2e / limit));
  f32x16 y = (1.0f - e) / (1.0f + e) * (limit * kLog2e);
  return select(negative, -y, y);
}

// ---- who computes what ---------------------------------------------------------------------------------------------

// Query rows of one request: row = token * heads of the group + head.
struct Segment {
  int request, first_row, num_rows;
};

// Up to kPack query rows, whose requests have the tokens [0, shared) in common.
struct Pack {
  int first_segment, num_segments, num_rows, shared;
  int first_split, last_split;
  int64_t scratch;              // its first partial result, -1: one thread does all splits
};

struct Item {
  int pack, head, split;        // split -1: all of them
};

// The same on every thread of a team; kept from call to call for its memory.
struct Plan {
  std::vector<std::pair<int64_t, int>> order;
  std::vector<std::pair<int, int>> members;  // requests of one group, with what they share with its first
  std::vector<Segment> segments;
  std::vector<Pack> packs;
  std::vector<Item> items, merged;
  int64_t scratch, work;

  void clear() {
    order.clear(), members.clear(), segments.clear(), packs.clear(), items.clear(), merged.clear();
    scratch = work = 0;
  }
};

static int num_tokens(const Batch& b, int request) { return b.cu_q[request + 1] - b.cu_q[request]; }
static int num_past(const Batch& b, int request) { return b.seq_lens[request] - num_tokens(b, request); }
static int first_visible(const Batch& b, int position) {
  return b.window && position >= b.window ? position - b.window + 1 : 0;
}

// Floats of the running state of so many rows.
static int64_t state_size(const Batch& b, int rows) { return kPack + int64_t(rows) * (kLanes + b.pages.value_dim()); }

// Tokens of whole blocks at the beginning of two requests that lie in the same pages.
static int common_tokens(const Batch& b, int one, int other) {
  int most = std::min(b.seq_lens[one], b.seq_lens[other]) / kBlock * kBlock, size = b.pages.page_size, page = 0;
  const int32_t *x = b.page_table + one * b.max_pages, *y = b.page_table + other * b.max_pages;
  while (page * size < most && x[page] == y[page]) ++page;
  return std::min(page * size, most) / kBlock * kBlock;
}

// Cuts the rows of members [begin, end) into packs, the last tokens first: they see the most keys.
static void add_packs(const Batch& b, Plan& plan, int begin, int end, int shared, int limit) {
  int share = b.heads / b.pages.kv_heads, total = 0;
  for (int m = begin; m < end; ++m) total += num_tokens(b, plan.members[m].first) * share;
  int count = (total + limit - 1) / limit;
  for (int n = count - 1; n >= 0; --n) {
    int from = int(int64_t(total) * n / count), to = int(int64_t(total) * (n + 1) / count);
    Pack pack{int(plan.segments.size()), 0, to - from, shared, 1 << 30, 0, -1};
    for (int m = begin, start = 0; m < end; ++m) {
      int request = plan.members[m].first, rows = num_tokens(b, request) * share;
      int first = std::max(from - start, 0), last = std::min(to - start, rows);
      start += rows;
      if (first >= last) continue;
      int past = num_past(b, request);
      plan.segments.push_back({request, first, last - first});
      pack.num_segments += 1;
      pack.first_split = std::min(pack.first_split, first_visible(b, past + first / share) / kSplit);
      pack.last_split = std::max(pack.last_split, (past + (last - 1) / share) / kSplit + 1);
    }
    plan.work += int64_t(pack.num_rows) * (pack.last_split - pack.first_split);
    plan.packs.push_back(pack);
  }
}

// Forms groups of the requests order[begin, end), which have the last page of their first block in common. The ones
// that share most with the first of them go together, as many as save the most reading; the others try again.
static void add_groups(const Batch& b, Plan& plan, int begin, int end, int limit) {
  plan.members.clear();
  for (int n = begin; n < end; ++n) plan.members.push_back({plan.order[n].second, 0});
  for (int first = 0, last = int(plan.members.size()); first < last;) {
    auto at = plan.members.begin();
    for (int m = first; m < last; ++m) at[m].second = common_tokens(b, at[first].first, at[m].first);
    std::sort(at + first + 1, at + last, [](auto x, auto y) {
      return x.second != y.second ? x.second > y.second : x.first < y.first;
    });
    int stop = first + 1;
    int64_t best = 0;
    for (int m = first + 1; m < last; ++m) {
      int64_t saved = int64_t(m - first) * at[m].second;
      if (saved > best) best = saved, stop = m + 1;
    }
    add_packs(b, plan, first, stop, best ? at[stop - 1].second : 0, limit);
    first = stop;
  }
}

static void add_items(const Batch& b, Plan& plan) {
  for (int n = 0; n < int(plan.packs.size()); ++n) {
    Pack& pack = plan.packs[n];
    int splits = pack.last_split - pack.first_split;
    int64_t need = state_size(b, pack.num_rows) * splits * b.pages.kv_heads;
    // Splits go to different threads where a pack would otherwise be a large part of all the work.
    bool apart = place.size > 1 && splits > 1 && int64_t(pack.num_rows) * splits * 4 * place.size > plan.work * b.pages.kv_heads;
    if (apart && plan.scratch + need <= kMaxScratch) {
      pack.scratch = plan.scratch;
      plan.scratch += need;
    }
    for (int h = 0; h < b.pages.kv_heads; ++h) {
      if (pack.scratch < 0) {
        plan.items.push_back({n, h, -1});
      } else {
        for (int s = pack.first_split; s < pack.last_split; ++s) plan.items.push_back({n, h, s});
        plan.merged.push_back({n, h, -1});
      }
    }
  }
}

static void make_plan(const Batch& b, Plan& plan) {
  plan.clear();
  int share = b.heads / b.pages.kv_heads, page = (kBlock - 1) / b.pages.page_size;
  int64_t rows = 0;
  for (int i = 0; i < b.rows; ++i) {
    if (!num_tokens(b, i)) continue;
    rows += int64_t(num_tokens(b, i)) * share;
    plan.order.push_back({b.seq_lens[i] < kBlock ? -1 - i : b.page_table[i * b.max_pages + page], i});
  }
  std::sort(plan.order.begin(), plan.order.end());
  // Few rows are cut finer, so that there is work for every thread.
  int64_t even = rows * b.pages.kv_heads / (2 * place.size);
  int limit = int(std::min<int64_t>(kPack, std::max<int64_t>({even, share, 12})));
  for (int begin = 0, end; begin < int(plan.order.size()); begin = end) {
    for (end = begin + 1; end < int(plan.order.size()) && plan.order[end].first == plan.order[begin].first;) ++end;
    add_groups(b, plan, begin, end, limit);
  }
  add_items(b, plan);
}

// ---- one block of keys ---------------------------------------------------------------------------------------------

// Online-softmax state of a pack: the greatest score, the sum of weights by lane, the weighted values.
struct State {
  float *top, *total, *out;

  State(float* base, int rows) : top(base), total(base + kPack), out(base + kPack + rows * kLanes) {}
};

struct Queries {
  int position[kPack], token[kPack], head[kPack];
  alignas(64) bf16 q[kPack][kMaxDim];
};

struct Block {
  int begin, tokens;                          // the cache holds so many of them
  const bf16 *k[kSubs], *v[kSubs];            // of its sub-pages
  const char *next_k[kSubs], *next_v[kSubs];  // what is read after it,
  int ahead;                                  // and the bytes of a number there
  alignas(64) float k_scale[kBlock], v_scale[kBlock];

  // The first tile fetches what is read next; for the others that would only be in the way.
  void stay() {
    for (int c = 0; c < kSubs; ++c) next_k[c] = (const char*)k[c], next_v[c] = (const char*)v[c];
  }
};

// A block as the products want it: bytes of the cache widened, values made of keys.
struct Unpacked {
  alignas(64) bf16 k[kBlock * kMaxDim], v[kBlock * kMaxDim];
};

#if defined(__AMX_TILE__)
#include "attention_tiles.h"
#else

template <int R>
static inline void scores(const bf16 (*q)[kMaxDim], const Block& block, int subs, int dim, f32x16 (&s)[R][kSubs]) {
  constexpr int W = tile_words(R);
  for (int first = 0; first < subs; first += W) {
    f32x16 sum[R][W] = {};
    for (int d = 0; d < dim / 2; ++d) {
      i32x16 keys[W];
      for (int c = 0; c < W; ++c) {
        keys[c] = load((const int32_t*)(block.k[first + c] + d * 2 * kSub));
        __builtin_prefetch(block.next_k[first + c] + d * 2 * kSub * block.ahead, 0, 2);
      }
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
static inline void some_values(const bf16 (*p)[kBlock], const Block& block, int tokens, int dim, int first,
                                   const float* decay, float* out) {
  f32x16 acc[R][W];
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < W; ++c) acc[r][c] = load(out + r * dim + first + c * kLanes) * decay[r];
  for (int t = 0; t < tokens; t += 2) {
    int at = (t % kSub) * dim + first * 2;
    const bf16* row = block.v[t / kSub] + at;
    i32x16 values[W];
    for (int c = 0; c < W; ++c) {
      values[c] = load((const int32_t*)(row + c * 2 * kLanes));
      __builtin_prefetch(block.next_v[t / kSub] + (at + c * 2 * kLanes) * block.ahead, 0, 2);
      if (t + 1 == tokens) values[c] &= 0xffff;  // the second token of the pair may never have been written
    }
    for (int r = 0; r < R; ++r) {
      uint32_t pair;
      std::memcpy(&pair, p[r] + t, 4);
      for (int c = 0; c < W; ++c) acc[r][c] = dot_bf16(acc[r][c], values[c], pair);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < W; ++c) store(out + r * dim + first + c * kLanes, acc[r][c]);
}

template <int R>
static inline void weighted_values(const bf16 (*p)[kBlock], const Block& block, int tokens, int dim, const float* decay,
                                   float* out) {
  constexpr int W = tile_words(R);
  int d = 0;
  for (; d + W * kLanes <= dim; d += W * kLanes) some_values<R, W>(p, block, tokens, dim, d, decay, out);
  for (; d < dim; d += kLanes) some_values<R, 1>(p, block, tokens, dim, d, decay, out);
}

#endif

// Turns scores into weights p and adds those up; decay is what earlier weights and values are now worth.
template <int R>
static inline void weigh(const Batch& b, const int* position, const Block& block, int subs, bool partly,
                         f32x16 (&s)[R][kSubs], float* top, float* total, bf16 (*p)[kBlock], float* decay) {
  static const int32_t lanes[kLanes] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const i32x16 lane = load(lanes);
  bool scaled = b.pages.k_scale;
  float factor = b.softcap ? b.scale : b.scale * kLog2e;
  for (int r = 0; r < R; ++r) {
    f32x16 best = splat(kLeast);
    for (int c = 0; c < subs; ++c) {
      f32x16 x = s[r][c] * factor;
      if (scaled) x = x * load(block.k_scale + c * kSub);
      if (b.softcap) x = cap_lanes(x, b.softcap);
      if (partly) {
        i32x16 token = lane + (block.begin + c * kSub);
        x = select((token <= position[r]) & (token >= first_visible(b, position[r])), x, splat(kMasked));
      }
      s[r][c] = x;
      best = max_lanes(best, x);
    }
    float peak = std::max(top[r], max_lane(best));
    decay[r] = top[r] - peak;
    top[r] = peak;
  }
  for (int r = R; r < kLanes; ++r) decay[r] = 0;
  store(decay, exp2_lanes(load(decay)));
  for (int r = 0; r < R; ++r) {
    f32x16 sum = load(total + r * kLanes) * decay[r];
    for (int c = 0; c < subs; ++c) {
      f32x16 e = exp2_lanes(s[r][c] - top[r]);
      sum += e;
      store_bf16(&p[r][c * kSub], scaled ? e * load(block.v_scale + c * kSub) : e);
    }
    store(total + r * kLanes, sum);
  }
}

// Rows [first, first + R) of the pack over one block.
template <int R>
static void attend_tile(const Batch& b, const Queries& queries, int first, const Block& block, const State& state) {
  const int* position = queries.position + first;
  int dim = b.pages.dim, value_dim = b.pages.value_dim(), newest = *std::max_element(position, position + R);
  int oldest = *std::min_element(position, position + R), tokens = std::min(block.tokens, newest + 1 - block.begin);
  if (tokens <= 0 || block.begin + kBlock <= first_visible(b, oldest)) return;
  constexpr int W = tile_words(R);
  int subs = (tokens + W * kSub - 1) / (W * kSub) * W;
  bool partly = block.begin + subs * kSub > oldest + 1 || block.begin < first_visible(b, newest);
  f32x16 s[R][kSubs];
  alignas(64) bf16 p[R][kBlock];
  alignas(64) float decay[kLanes];
  scores<R>(queries.q + first, block, subs, dim, s);
  weigh<R>(b, position, block, subs, partly, s, state.top + first, state.total + first * kLanes, p, decay);
  weighted_values<R>(p, block, tokens, value_dim, decay, state.out + first * value_dim);
}

template <int R>
static void attend_rows(int rows, const Batch& b, const Queries& queries, int first, const Block& block,
                        const State& state) {
  if (rows == R) return attend_tile<R>(b, queries, first, block, state);
  if constexpr (R > 1) attend_rows<R - 1>(rows, b, queries, first, block, state);
}

// ---- passes over the keys of a request -----------------------------------------------------------------------------

// Number of a token's place in the cache, counted over pages, heads and offsets.
static int64_t place_of(const Batch& b, int request, int head, int token) {
  const Pages& pages = b.pages;
  int64_t page = b.page_table[request * b.max_pages + token / pages.page_size];
  return (page * pages.kv_heads + head) * pages.page_size + token % pages.page_size;
}

static void widen_bytes(const char* from, int count, bf16* to) {
  const uint8_t* bytes = (const uint8_t*)from;
  for (int i = 0; i < count; i += 2 * kLanes) {
    f32x16 x = to_float(widen(bytes + i)) - 128.0f, y = to_float(widen(bytes + i + kLanes)) - 128.0f;
#if defined(__AVX512BF16__)
    _mm512_storeu_si512(to + i, (__m512i)_mm512_cvtne2ps_pbh((__m512)y, (__m512)x));
#else
    store_bf16(to + i, x);
    store_bf16(to + i + kLanes, y);
#endif
  }
}

// The values of a sub-page from its keys, of which they are the first `dim` numbers. Two dims of two tokens are a word of
// 64 bits in both orders: here words are transposed, and the middle quarters of each change places.
static void unpack_values(const bf16* k, int dim, bf16* v) {
#if defined(__AVX2__)
  const __m128i quarters = _mm_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15);
  const __m256i exchanged = _mm256_broadcastsi128_si256(quarters);
  for (int d = 0; d < dim; d += 8)
    for (int t = 0; t < kSub; t += 8) {
      __m256i x[4], y[4];
      for (int i = 0; i < 4; ++i)
        x[i] = _mm256_shuffle_epi8(_mm256_loadu_si256((const __m256i*)(k + (d + 2 * i) * kSub + t * 2)), exchanged);
      y[0] = _mm256_unpacklo_epi64(x[0], x[1]), y[1] = _mm256_unpackhi_epi64(x[0], x[1]);
      y[2] = _mm256_unpacklo_epi64(x[2], x[3]), y[3] = _mm256_unpackhi_epi64(x[2], x[3]);
      bf16* to = v + t * dim + d * 2;
      _mm256_storeu_si256((__m256i*)to, _mm256_permute2x128_si256(y[0], y[2], 0x20));
      _mm256_storeu_si256((__m256i*)(to + 2 * dim), _mm256_permute2x128_si256(y[1], y[3], 0x20));
      _mm256_storeu_si256((__m256i*)(to + 4 * dim), _mm256_permute2x128_si256(y[0], y[2], 0x31));
      _mm256_storeu_si256((__m256i*)(to + 6 * dim), _mm256_permute2x128_si256(y[1], y[3], 0x31));
    }
#else
  for (int d = 0; d < dim; ++d)
    for (int t = 0; t < kSub; ++t) v[t / 2 * 2 * dim + d * 2 + t % 2] = k[d / 2 * 2 * kSub + t * 2 + d % 2];
#endif
}

// Where a block's sub-pages are; those behind its last token stand for nothing and are the first one again.
static void find_places(const Batch& b, int request, int head, int begin, int64_t (&at)[kSubs]) {
  for (int c = 0; c < kSubs; ++c)
    at[c] = place_of(b, request, head, begin + c * kSub < b.seq_lens[request] ? begin + c * kSub : begin);
}

static void fill_block(const Batch& b, const int64_t (&at)[kSubs], const int64_t (&next)[kSubs], Block& block) {
  const Pages& pages = b.pages;
  bool bytes = pages.k_scale;
  int64_t size = pages.dim * (bytes ? 1 : 2);
  const char *k = (const char*)pages.k, *v = (const char*)pages.v;
  block.ahead = bytes ? 1 : 2;
  for (int c = 0; c < kSubs; ++c) {
    block.next_k[c] = k + next[c] * size, block.next_v[c] = v + next[c] * size;
    block.k[c] = (const bf16*)(k + at[c] * size), block.v[c] = (const bf16*)(v + at[c] * size);
  }
  if (!bytes && !pages.latent) return;
  static thread_local Unpacked own;
  for (int c = 0; c < kSubs; ++c) {
    bf16 *to_k = own.k + c * kSub * pages.dim, *to_v = own.v + c * kSub * pages.value_dim();
    if (c * kSub >= block.tokens) {  // read all the same, but masked: the bytes of the cache would not be enough
      if (bytes) block.k[c] = own.k;
      block.v[c] = own.v;
      continue;
    }
    if (bytes) widen_bytes(k + at[c] * size, kSub * pages.dim, to_k), block.k[c] = to_k;
    if (pages.latent) unpack_values(block.k[c], pages.latent, to_v);
    else widen_bytes(v + at[c] * size, kSub * pages.dim, to_v);
    block.v[c] = to_v;
    for (int t = 0; t < kSub && bytes; t += kLanes) {
      store(block.k_scale + c * kSub + t, load(pages.k_scale + at[c] + t));
      store(block.v_scale + c * kSub + t, load(pages.v_scale + at[c] + t));
    }
  }
  for (int t = block.tokens; t < kBlock && bytes; ++t) block.k_scale[t] = block.v_scale[t] = 0;  // never written
}

// Rows [first, first + count) of the pack over the blocks [begin, end) of a request.
static void attend_blocks(const Batch& b, const Queries& queries, int first, int count, int request, int head,
                          int begin, int end, const State& state) {
  if (begin >= end) return;
  Block block;
  int tiles = (count + kTile - 1) / kTile;
#if defined(__AMX_TILE__)
  Tiles shapes;
#endif
  int64_t at[kSubs], next[kSubs];
  find_places(b, request, head, begin, next);
  for (; begin < end; begin += kBlock) {
    std::copy(next, next + kSubs, at);
    if (begin + kBlock < end) find_places(b, request, head, begin + kBlock, next);
    block.begin = begin;
    block.tokens = std::min(b.seq_lens[request] - begin, kBlock);
    fill_block(b, at, next, block);
    for (int t = 0; t < tiles; ++t) {
      int from = first + count * t / tiles, to = first + count * (t + 1) / tiles;
#if defined(__AMX_TILE__)
      shapes.halved(to - from);
#endif
      attend_rows<kTile>(to - from, b, queries, from, block, state);
      block.stay();
    }
  }
}

static void attend_split(const Batch& b, const Plan& plan, const Pack& pack, int head, int split,
                         const Queries& queries, const State& state) {
  std::fill(state.top, state.top + pack.num_rows, kLeast);
  std::fill(state.total, state.total + pack.num_rows * (kLanes + b.pages.value_dim()), 0.0f);
  int begin = split * kSplit, end = begin + kSplit, common = std::min(end, pack.shared);
  const Segment* segments = plan.segments.data() + pack.first_segment;
  auto first_block = [&](int from, int row, int rows) {
    int oldest = *std::min_element(queries.position + row, queries.position + row + rows);
    return std::max(from, first_visible(b, oldest) / kBlock * kBlock);
  };
  auto last_token = [&](int to, int row, int rows) {
    return std::min(to, *std::max_element(queries.position + row, queries.position + row + rows) + 1);
  };
  attend_blocks(b, queries, 0, pack.num_rows, segments[0].request, head, first_block(begin, 0, pack.num_rows),
                last_token(common, 0, pack.num_rows), state);
  begin = std::max(begin, pack.shared);
  for (int n = 0, row = 0; n < pack.num_segments; row += segments[n++].num_rows)
    attend_blocks(b, queries, row, segments[n].num_rows, segments[n].request, head,
                  first_block(begin, row, segments[n].num_rows), last_token(end, row, segments[n].num_rows), state);
}

// into += part, in the order of the splits.
static void merge(const Batch& b, int rows, const State& into, const State& part) {
  int dim = b.pages.value_dim();
  for (int r = 0; r < rows; ++r) {
    float top = std::max(into.top[r], part.top[r]);
    float x = exp2_lane(into.top[r] - top), y = exp2_lane(part.top[r] - top);
    auto add = [&](float* a, const float* c) { store(a, load(a) * x + load(c) * y); };
    into.top[r] = top;
    add(into.total + r * kLanes, part.total + r * kLanes);
    for (int d = 0; d < dim; d += kLanes) add(into.out + r * dim + d, part.out + r * dim + d);
  }
}

static void find_queries(const Batch& b, const Plan& plan, const Pack& pack, int head, Queries& queries) {
  int share = b.heads / b.pages.kv_heads, r = 0;
  for (int n = 0; n < pack.num_segments; ++n) {
    const Segment& segment = plan.segments[pack.first_segment + n];
    for (int i = 0; i < segment.num_rows; ++i, ++r) {
      int row = segment.first_row + i;
      queries.position[r] = num_past(b, segment.request) + row / share;
      queries.token[r] = b.cu_q[segment.request] + row / share;
      queries.head[r] = head * share + row % share;
      std::memcpy(queries.q[r], b.q + queries.token[r] * b.ldq + queries.head[r] * b.pages.dim, 2 * b.pages.dim);
    }
  }
}

static void finish(const Batch& b, const Pack& pack, const Queries& queries, const State& state) {
  int dim = b.pages.value_dim();
  for (int r = 0; r < pack.num_rows; ++r) {
    float total = sum_lanes(load(state.total + r * kLanes)), scale = 1;
    if (b.sinks) {  // a key without a value
      float sink = b.sinks[queries.head[r]] * kLog2e, top = std::max(state.top[r], sink);
      scale = exp2_lane(state.top[r] - top);
      total = total * scale + exp2_lane(sink - top);
    }
    scale /= total;
    bf16* out = b.out + (int64_t(queries.token[r]) * b.heads + queries.head[r]) * dim;
    for (int d = 0; d < dim; d += kLanes) store_bf16(out + d, load(state.out + r * dim + d) * scale);
  }
}

void attend(const Batch& b) {
  if (!place.team) return together([&] { attend(b); });
  static thread_local Plan plan;
  static thread_local Queries queries;
  alignas(64) static thread_local float memory[2][kPack * (1 + kLanes + kMaxDim)];
  make_plan(b, plan);
  float* scratch = nullptr;
  if (plan.scratch)
    scratch = (float*)once([&]() -> void* {
      static thread_local std::vector<float> pool;
      if (int64_t(pool.size()) < plan.scratch) pool.resize(plan.scratch);
      return pool.data();
    });
  auto partial = [&](const Item& item, int split) {
    const Pack& pack = plan.packs[item.pack];
    int64_t number = int64_t(item.head) * (pack.last_split - pack.first_split) + split - pack.first_split;
    return State(scratch + pack.scratch + number * state_size(b, pack.num_rows), pack.num_rows);
  };
  dynamic(int64_t(plan.items.size()), [&](int64_t n) {
    const Item& item = plan.items[n];
    const Pack& pack = plan.packs[item.pack];
    find_queries(b, plan, pack, item.head, queries);
    if (item.split >= 0) return attend_split(b, plan, pack, item.head, item.split, queries, partial(item, item.split));
    State sum(memory[0], pack.num_rows), part(memory[1], pack.num_rows);
    attend_split(b, plan, pack, item.head, pack.first_split, queries, sum);
    for (int s = pack.first_split + 1; s < pack.last_split; ++s) {
      attend_split(b, plan, pack, item.head, s, queries, part);
      merge(b, pack.num_rows, sum, part);
    }
    finish(b, pack, queries, sum);
  });
  if (plan.merged.empty()) return;
  dynamic(int64_t(plan.merged.size()), [&](int64_t n) {
    const Item& item = plan.merged[n];
    const Pack& pack = plan.packs[item.pack];
    find_queries(b, plan, pack, item.head, queries);
    State sum = partial(item, pack.first_split);
    for (int s = pack.first_split + 1; s < pack.last_split; ++s) merge(b, pack.num_rows, sum, partial(item, s));
    finish(b, pack, queries, sum);
  });
}

}  // namespace sgl

using namespace sgl;

extern "C" {

void sgl_attention(const bf16* q, int64_t ldq, void* k, void* v, float* k_scale, float* v_scale, const int32_t* cu_q,
                   const int32_t* seq_lens, const int32_t* page_table, int64_t max_pages, int rows, int heads,
                   int kv_heads, int dim, int page_size, int latent, float scale, float softcap, const float* sinks,
                   int window, bf16* out) {
  Pages pages{k, v, k_scale, v_scale, kv_heads, dim, page_size, latent};
  attend({q, ldq, pages, cu_q, seq_lens, page_table, max_pages, rows, heads, scale, softcap, sinks, window, out});
}
}
