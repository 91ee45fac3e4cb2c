// Norms, rotary embedding and the store into the paged cache.
#include <cmath>

#include "kernels.h"

namespace sgl {

static float inverse_rms(const bf16* x, int64_t width, float eps) {
  f32x16 sum{};
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) {
    f32x16 v = load_bf16(x + i);
    sum += v * v;
  }
  float total = sum_lanes(sum);
  for (; i < width; ++i) total += to_float(x[i]) * to_float(x[i]);
  return 1.0f / std::sqrt(total / float(width) + eps);
}

void norm_row(const bf16* x, int64_t width, const bf16* weight, float eps, bf16* out) {
  float inverse = inverse_rms(x, width, eps);
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) {
    store_bf16(out + i, load_bf16(x + i) * inverse);
    store_bf16(out + i, load_bf16(out + i) * load_bf16(weight + i));
  }
  for (; i < width; ++i) out[i] = to_bf16(to_float(to_bf16(to_float(x[i]) * inverse)) * to_float(weight[i]));
}

// The first of the largest of x; the largest is NaN if one of them is.
struct Peak {
  float value;
  int64_t place;
};

static Peak peak_of(const float* x, int64_t width) {
  if (width < kLanes) {
    Peak best{x[0], 0};
    for (int64_t i = 1; i < width; ++i)
      if (x[i] > best.value || x[i] != x[i]) best = {x[i], i};
    return best;
  }
  f32x16 top = load(x);
  i32x16 ordered = top >= top, step{};  // NaN is not; in which step a lane found its largest
  auto look = [&](int64_t i) {
    f32x16 v = load(x + i);
    i32x16 larger = v > top;
    top = select(larger, v, top);
    step = (step & ~larger) | (larger & int32_t(i));
    ordered &= v >= v;
  };
  for (int64_t i = kLanes; i + kLanes <= width; i += kLanes) look(i);
  if (width % kLanes) look(width - kLanes);
  Peak best{top[0], step[0]};
  for (int lane = 0; lane < kLanes; ++lane) {
    int64_t found = step[lane] + lane;
    if (!ordered[lane]) return {0.0f / 0.0f, found};
    if (top[lane] > best.value || (top[lane] == best.value && found < best.place)) best = {top[lane], found};
  }
  return best;
}

static void mask_row(float* x, int64_t width, const uint8_t* mask) {
  const float forbidden = -INFINITY;
  i32x16 own{};
  for (int lane = 0; lane < kLanes; ++lane) own[lane] = 1 << lane;
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) {
    int32_t bits = mask[i / 8] | mask[i / 8 + 1] << 8;
    store(x + i, load(x + i) + select((own & bits) > 0, splat(0.0f), splat(forbidden)));
  }
  for (; i < width; ++i)
    if (!(mask[i / 8] >> i % 8 & 1)) x[i] += forbidden;
}

static void rotate(bf16* head, const float* cos, const float* sin, int half) {
  int i = 0;
  for (; i + kLanes <= half; i += kLanes) {
    f32x16 a = load_bf16(head + i), b = load_bf16(head + half + i);
    f32x16 c = load(cos + i), s = load(sin + i);
    store_bf16(head + i, a * c - b * s);
    store_bf16(head + half + i, b * c + a * s);
  }
  for (; i < half; ++i) {
    float a = to_float(head[i]), b = to_float(head[half + i]);
    head[i] = to_bf16(a * cos[i] - b * sin[i]);
    head[half + i] = to_bf16(b * cos[i] + a * sin[i]);
  }
}

// x [dim] as bytes, number + 128, `stride` bytes apart in pairs of `pair`; returns their scale, NaN if x is not finite.
static float quantise_head(const bf16* x, int dim, uint8_t* to, int pair, int stride) {
  f32x16 top{}, taint{};
  for (int d = 0; d < dim; d += kLanes) {
    f32x16 v = load_bf16(x + d);
    top = max_lanes(top, max_lanes(v, -v));
    taint += v * 0.0f;
  }
  float peak = max_lane(top), clean = sum_lanes(taint);
  if (clean != 0.0f) peak = 0.0f;
  float inverse = peak > 0.0f ? 127.0f / peak : 0.0f;
  for (int d = 0; d < dim; d += kLanes) {
    // Below 2^22 the sum's low bits are the nearest integer.
    i32x16 q = as_int(load_bf16(x + d) * inverse + 12582912.0f) - (0x4b400000 - 128);
    for (int i = 0; i < kLanes; ++i) to[(d + i) / pair * stride + (d + i) % pair] = uint8_t(q[i]);
  }
  return peak / 127.0f + clean;
}

static void store_token(const bf16* k, const bf16* v, int64_t loc, const Pages& pages) {
  int dim = pages.dim, lane = int(loc % pages.page_size % kSub);
  for (int h = 0; h < pages.kv_heads; ++h, k += dim, v += dim) {
    int64_t token = (loc / pages.page_size * pages.kv_heads + h) * pages.page_size + loc % pages.page_size;
    int64_t base = (token - lane) * dim, at_k = base + lane * 2, at_v = base + lane / 2 * 2 * dim + lane % 2;
    if (pages.k_scale) {
      pages.k_scale[token] = quantise_head(k, dim, (uint8_t*)pages.k + at_k, 2, 2 * kSub);
      if (pages.latent) continue;
      pages.v_scale[token] = quantise_head(v, dim, (uint8_t*)pages.v + at_v, 1, 2);
    } else {
      bf16 *to_k = (bf16*)pages.k + at_k, *to_v = (bf16*)pages.v + at_v;
      for (int d = 0; d < dim; d += 2) std::memcpy(to_k + d * kSub, k + d, 4);
      for (int d = 0; d < dim && !pages.latent; ++d) to_v[2 * d] = v[d];
    }
  }
}

void rope_and_store(bf16* qkv, int64_t tokens, const Heads& heads, const Rope& rope, const int64_t* loc,
                    const Pages& pages) {
  int dim = pages.dim, half = dim / 2;
  int64_t width = int64_t(heads.heads + 2 * pages.kv_heads) * dim;
  auto body = [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      bf16* row = qkv + t * width;
      const float *cos = rope.cos + t * half, *sin = rope.sin + t * half;
      for (int h = 0; h < heads.heads + pages.kv_heads; ++h) {
        bf16* head = row + h * dim;
        const bf16* norm = h < heads.heads ? heads.q_norm : heads.k_norm;
        if (norm) norm_row(head, dim, norm, heads.eps, head);
        rotate(head, cos, sin, half);
      }
      const bf16* k = row + heads.heads * dim;
      store_token(k, k + pages.kv_heads * dim, loc[t], pages);
    }
  };
  parallel(tokens, body, 4);
}

}  // namespace sgl

using namespace sgl;

extern "C" {

void sgl_rms_norm(const bf16* x, int64_t rows, int64_t width, const bf16* weight, float eps, bf16* out) {
  auto body = [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) norm_row(x + r * width, width, weight, eps, out + r * width);
  };
  if (rows * width < 16384) body(0, rows);
  else parallel(rows, body);
}

void sgl_argmax(const float* x, int64_t rows, int64_t width, int64_t* places, float* peaks) {
  auto body = [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      Peak best = peak_of(x + r * width, width);
      places[r] = best.place;
      peaks[r] = best.value;
    }
  };
  if (rows * width < 262144) body(0, rows);
  else parallel(rows, body);
}

// Adds -inf, in `count` rows of x [N, width], where the row of masks has a zero bit, least significant bits first.
void sgl_mask(float* x, int64_t width, const int64_t* rows, int64_t count, const uint8_t* masks) {
  auto body = [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) mask_row(x + rows[r] * width, width, masks + r * ((width + 7) / 8));
  };
  if (count * width < 262144) body(0, count);
  else parallel(count, body);
}

// Of `count` slots: the token at the computed count, that count, and the one after it.
void sgl_locate(const int32_t* tokens, int64_t stride, const int64_t* computed, const int64_t* slots, int64_t count,
                int64_t* ids, int64_t* positions, int64_t* next_positions, int32_t* seq_lens) {
  for (int64_t i = 0; i < count; ++i) {
    positions[i] = computed[slots[i]];
    next_positions[i] = positions[i] + 1;
    seq_lens[i] = int32_t(next_positions[i]);
    ids[i] = tokens[slots[i] * stride + positions[i]];
  }
}

// The place in the KV cache of `positions` of `slots`, whose pages stand in rows of `stride`.
void sgl_place(const int32_t* pages, int64_t stride, int64_t page_size, const int64_t* slots, const int64_t* positions,
               int64_t count, int64_t* loc) {
  for (int64_t i = 0; i < count; ++i) {
    int64_t page = pages[slots[i] * stride + positions[i] / page_size];
    loc[i] = page * page_size + positions[i] % page_size;
  }
}

void sgl_commit(int32_t* tokens, int64_t stride, int64_t* computed, const int64_t* slots, int64_t count,
                const int64_t* positions, const int64_t* ids) {
  for (int64_t i = 0; i < count; ++i) {
    tokens[slots[i] * stride + positions[i]] = int32_t(ids[i]);
    computed[slots[i]] = positions[i];
  }
}

// k, v [T, Hkv, D] with token strides ldk, ldv; loc [T] = page * page_size + offset. Of latents only k is stored.
void sgl_kv_store(const bf16* k, int64_t ldk, const bf16* v, int64_t ldv, const int64_t* loc, int64_t tokens,
                  int kv_heads, int dim, int page_size, int latent, void* k_cache, void* v_cache, float* k_scale,
                  float* v_scale) {
  Pages pages{k_cache, v_cache, k_scale, v_scale, kv_heads, dim, page_size, latent};
  auto body = [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) store_token(k + t * ldk, v + t * ldv, loc[t], pages);
  };
  parallel(tokens, body, 4);
}
}
