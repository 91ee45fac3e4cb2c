// Norms, rotary embedding and the store into the paged cache.
#include <algorithm>
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

// One head of one token as bytes, value + 128, in steps of `step` bytes for every four; returns their scale.
template <typename Put>
static float quantize_head(const bf16* x, int dim, const Put& put) {
  float peak = 0;
  for (int d = 0; d < dim; ++d) peak = std::max(peak, std::fabs(to_float(x[d])));
  float inverse = peak > 0 ? 127.0f / peak : 0.0f;
  for (int d = 0; d < dim; ++d) put(d, uint8_t(int(std::nearbyint(to_float(x[d]) * inverse)) + 128));
  return peak / 127.0f;
}

static void store_token(const bf16* k, const bf16* v, int64_t loc, const Pages& pages) {
  int dim = pages.dim, lane = int(loc % pages.page_size % kSub);
  for (int h = 0; h < pages.kv_heads; ++h, k += dim, v += dim) {
    int64_t token = (loc / pages.page_size * pages.kv_heads + h) * pages.page_size + loc % pages.page_size;
    int64_t base = (token - lane) * dim;
    if (pages.k_scale) {
      uint8_t *to_k = (uint8_t*)pages.k + base + lane * 4, *to_v = (uint8_t*)pages.v + base + lane / 4 * 4 * dim + lane % 4;
      pages.k_scale[token] = quantize_head(k, dim, [=](int d, uint8_t x) { to_k[d / 4 * 4 * kSub + d % 4] = x; });
      pages.v_scale[token] = quantize_head(v, dim, [=](int d, uint8_t x) { to_v[4 * d] = x; });
    } else {
      bf16 *to_k = (bf16*)pages.k + base + lane * 2, *to_v = (bf16*)pages.v + base + lane / 2 * 2 * dim + lane % 2;
      for (int d = 0; d < dim; d += 2) std::memcpy(to_k + d * kSub, k + d, 4);
      for (int d = 0; d < dim; ++d) to_v[2 * d] = v[d];
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

// k, v [T, Hkv, D] with token strides ldk, ldv; loc [T] = page * page_size + offset.
void sgl_kv_store(const bf16* k, int64_t ldk, const bf16* v, int64_t ldv, const int64_t* loc, int64_t tokens,
                  int kv_heads, int dim, int page_size, void* k_cache, void* v_cache, float* k_scale, float* v_scale) {
  Pages pages{k_cache, v_cache, k_scale, v_scale, kv_heads, dim, page_size};
  auto body = [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) store_token(k + t * ldk, v + t * ldv, loc[t], pages);
  };
  parallel(tokens, body, 4);
}
}
