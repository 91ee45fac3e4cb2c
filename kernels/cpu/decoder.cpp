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
  Weight qkv, out, gate_up, down;
  void *k_cache, *v_cache;
  float *k_scale, *v_scale;  // null where the cache is bf16
  const float* sinks;
  int64_t window;
};

struct Shape {
  int64_t hidden, heads, kv_heads, dim, inner, page_size;
  float eps, scale, softcap, rope_scale;
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
// are used, of angles `tokens * D`, and of quantised the most that `activation_bytes` says of a weight, for every token.
void sgl_decoder(const LayerWeights* layers, int64_t count, const Shape* shape, const Step* step, bf16* hidden,
                 bf16* scratch, float* angles, void* quantised) {
  if (!place.team)
    return together([&] { sgl_decoder(layers, count, shape, step, hidden, scratch, angles, quantised); });
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
    Activations x = activations(w.qkv, hidden, tokens, quantised, w.attention_norm, s.eps, normed);
    linear(w.qkv, x, tokens, qkv, Epilogue::none);
    Pages pages{w.k_cache, w.v_cache, w.k_scale, w.v_scale, int(s.kv_heads), int(s.dim), int(s.page_size)};
    rope_and_store(qkv, tokens, {int(s.heads), w.q_norm, w.k_norm, s.eps}, {cos, sin}, step->loc, pages);
    attend({qkv, width, pages, step->cu_q, step->seq_lens, step->page_table, step->max_pages, int(step->rows),
            int(s.heads), s.scale, s.softcap, w.sinks, int(w.window), attended});
    linear(w.out, activations(w.out, attended, tokens, quantised), tokens, hidden, Epilogue::residual);
    x = activations(w.gate_up, hidden, tokens, quantised, w.mlp_norm, s.eps, normed);
    linear(w.gate_up, x, tokens, active, Epilogue::silu_mul);
    linear(w.down, activations(w.down, active, tokens, quantised), tokens, hidden, Epilogue::residual);
  }
}
}
