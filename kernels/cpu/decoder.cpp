// A whole decoder of pre-norm, gated layers in one call: what a step costs beyond its kernels is one dispatch.
#include <cmath>

#include "kernels.h"

namespace sgl {

void (*gomp_parallel)(Body, void*, unsigned, unsigned) = nullptr;
int (*omp_thread)() = nullptr;
int (*omp_threads)() = nullptr;
int num_threads = 1;
thread_local Place place;

}  // namespace sgl

using namespace sgl;

extern "C" {

// Mirrors the ctypes structures of decoder.py, field by field.
struct LayerWeights {
  const bf16 *attention_norm, *mlp_norm, *q_norm, *k_norm;
  const bf16 *qkv, *out, *gate_up, *down;
  const float *qkv_bias, *out_bias, *gate_up_bias, *down_bias;
  bf16 *k_cache, *v_cache;
  int64_t window;
};

struct Shape {
  int64_t hidden, heads, kv_heads, dim, inner, page_size;
  float eps, scale, rope_scale;
  const float* frequencies;  // [dim / 2]
};

struct Step {
  int64_t tokens, rows, max_pages;
  const int64_t *positions, *loc;
  const int32_t *cu_q, *seq_lens, *page_table;
};

// The entry points of the OpenMP runtime to use, and how many threads to ask it for.
void sgl_threads(void* parallel, void* thread, void* threads, int count) {
  gomp_parallel = (void (*)(Body, void*, unsigned, unsigned))parallel;
  omp_thread = (int (*)())thread;
  omp_threads = (int (*)())threads;
  num_threads = count;
}

// hidden [T, hidden] is replaced by the last layer's output. Of scratch, `tokens * (hidden + (2 H + 2 Hkv) D + inner)`
// are used, and of angles `tokens * D`.
void sgl_decoder(const LayerWeights* layers, int64_t count, const Shape* shape, const Step* step, bf16* hidden,
                 bf16* scratch, float* angles) {
  if (!place.team)
    return together([&] { sgl_decoder(layers, count, shape, step, hidden, scratch, angles); });
  const Shape& s = *shape;
  int64_t tokens = step->tokens, width = (s.heads + 2 * s.kv_heads) * s.dim, mixed = s.heads * s.dim, half = s.dim / 2;
  bf16 *normed = scratch, *qkv = normed + tokens * s.hidden, *attended = qkv + tokens * width;
  bf16* active = attended + tokens * mixed;
  float *cos = angles, *sin = angles + tokens * half;
  parallel(tokens, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      for (int64_t i = 0; i < half; ++i) {
        float angle = float(step->positions[t]) * s.frequencies[i];
        cos[t * half + i] = std::cos(angle) * s.rope_scale;
        sin[t * half + i] = std::sin(angle) * s.rope_scale;
      }
  }, 4);
  for (int64_t n = 0; n < count; ++n) {
    const LayerWeights& w = layers[n];
    rms_norm(hidden, tokens, s.hidden, w.attention_norm, s.eps, normed);
    linear(normed, tokens, s.hidden, w.qkv, width, w.qkv_bias, qkv, Epilogue::none);
    Heads heads{int(s.heads), int(s.kv_heads), int(s.dim), int(s.page_size), w.q_norm, w.k_norm, s.eps};
    rope_and_store(qkv, tokens, heads, {cos, sin}, step->loc, w.k_cache, w.v_cache);
    attend({qkv, width, w.k_cache, w.v_cache, step->cu_q, step->seq_lens, step->page_table, step->max_pages,
            int(step->rows), int(s.heads), int(s.kv_heads), int(s.dim), int(s.page_size), s.scale, int(w.window),
            attended});
    linear(attended, tokens, mixed, w.out, s.hidden, w.out_bias, hidden, Epilogue::residual);
    rms_norm(hidden, tokens, s.hidden, w.mlp_norm, s.eps, normed);
    linear(normed, tokens, s.hidden, w.gate_up, 2 * s.inner, w.gate_up_bias, active, Epilogue::silu_mul);
    linear(active, tokens, s.inner, w.down, s.hidden, w.down_bias, hidden, Epilogue::residual);
  }
}
}
