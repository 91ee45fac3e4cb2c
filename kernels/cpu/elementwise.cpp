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

static void norm_row(const bf16* x, int64_t width, const bf16* weight, float eps, bf16* out) {
  float inverse = inverse_rms(x, width, eps);
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) {
    store_bf16(out + i, load_bf16(x + i) * inverse);
    store_bf16(out + i, load_bf16(out + i) * load_bf16(weight + i));
  }
  for (; i < width; ++i) out[i] = to_bf16(to_float(to_bf16(to_float(x[i]) * inverse)) * to_float(weight[i]));
}

void rms_norm(const bf16* x, int64_t rows, int64_t width, const bf16* weight, float eps, bf16* out) {
  auto body = [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) norm_row(x + r * width, width, weight, eps, out + r * width);
  };
  parallel(rows, body, 1 + 16384 / width);
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

static void store_token(const bf16* k, const bf16* v, int64_t loc, int kv_heads, int dim, int page_size, bf16* k_cache,
                        bf16* v_cache) {
  int64_t page = loc / page_size, offset = loc % page_size;
  for (int h = 0; h < kv_heads; ++h) {
    int64_t base = ((page * kv_heads + h) * page_size + offset / kSub * kSub) * dim;
    bf16* to_k = k_cache + base + offset % kSub * 2;
    bf16* to_v = v_cache + base + offset % kSub / 2 * 2 * dim + offset % 2;
    for (int d = 0; d < dim; d += 2) std::memcpy(to_k + d * kSub, k + h * dim + d, 4);
    for (int d = 0; d < dim; ++d) to_v[2 * d] = v[h * dim + d];
  }
}

void rope_and_store(bf16* qkv, int64_t tokens, const Heads& heads, const Rope& rope, const int64_t* loc, bf16* k_cache,
                    bf16* v_cache) {
  int dim = heads.dim, half = dim / 2;
  int64_t width = int64_t(heads.heads + 2 * heads.kv_heads) * dim;
  auto body = [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      bf16* row = qkv + t * width;
      const float *cos = rope.cos + t * half, *sin = rope.sin + t * half;
      for (int h = 0; h < heads.heads + heads.kv_heads; ++h) {
        bf16* head = row + h * dim;
        const bf16* norm = h < heads.heads ? heads.q_norm : heads.k_norm;
        if (norm) norm_row(head, dim, norm, heads.eps, head);
        rotate(head, cos, sin, half);
      }
      const bf16* k = row + heads.heads * dim;
      store_token(k, k + heads.kv_heads * dim, loc[t], heads.kv_heads, dim, heads.page_size, k_cache, v_cache);
    }
  };
  parallel(tokens, body, 4);
}

}  // namespace sgl

using namespace sgl;

extern "C" {

// k, v [T, Hkv, D] with token strides ldk, ldv; loc [T] = page * page_size + offset.
void sgl_kv_store(const bf16* k, int64_t ldk, const bf16* v, int64_t ldv, const int64_t* loc, int64_t tokens,
                  int kv_heads, int dim, int page_size, bf16* k_cache, bf16* v_cache) {
  auto body = [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      store_token(k + t * ldk, v + t * ldv, loc[t], kv_heads, dim, page_size, k_cache, v_cache);
  };
  parallel(tokens, body, 4);
}
}
