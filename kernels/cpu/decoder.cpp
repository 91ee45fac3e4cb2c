// A whole decoder of pre-norm, gated layers in one call: what a step costs beyond its kernels is one dispatch.
#include <cmath>
#include <ctime>

#include "kernels.h"

namespace sgl {

void (*gomp_parallel)(Body, void*, unsigned, unsigned) = nullptr;
int (*omp_thread)() = nullptr;
int (*omp_threads)() = nullptr;
int num_threads = 1;
thread_local Place place;

// Where the ends of stages are noted while somebody records them; marks.py mirrors both, field by field.
struct Mark {
  int64_t time_ns;
  int32_t stage, layer;
};
enum class Stage : int32_t { start, rotation, attention_norm, qkv, rope_store, attention, out, mlp_norm, up, down };
static Mark* marks = nullptr;
static int64_t max_marks = 0;
static std::atomic<int64_t> num_marks{0};

// A stage is over: every thread has passed its barrier, so one of them may say so for all.
static inline void mark(Stage stage, int64_t layer) {
  if (!marks || place.rank) return;
  int64_t at = num_marks.fetch_add(1, std::memory_order_relaxed);
  if (at >= max_marks) return;
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  marks[at] = {int64_t(now.tv_sec) * 1000000000 + now.tv_nsec, int32_t(stage), int32_t(layer)};
}

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

// From now on stages are marked in a buffer of so many; null ends that. Returns how many there were, dropped ones too.
int64_t sgl_record(void* buffer, int64_t capacity) {
  max_marks = capacity;
  marks = (Mark*)buffer;
  return num_marks.exchange(0);
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
  mark(Stage::start, 0);
  parallel(tokens, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      for (int64_t i = 0; i < half; ++i) {
        float angle = float(step->positions[t]) * s.frequencies[i];
        cos[t * half + i] = std::cos(angle) * s.rope_scale;
        sin[t * half + i] = std::sin(angle) * s.rope_scale;
      }
  }, 4);
  mark(Stage::rotation, 0);
  for (int64_t n = 0; n < count; ++n) {
    const LayerWeights& w = layers[n];
    Activations x = activations(w.qkv, hidden, tokens, quantised, w.attention_norm, s.eps, normed);
    mark(Stage::attention_norm, n);
    linear(w.qkv, x, tokens, qkv, Epilogue::none);
    mark(Stage::qkv, n);
    Pages pages{w.k_cache, w.v_cache, w.k_scale, w.v_scale, int(s.kv_heads), int(s.dim), int(s.page_size)};
    rope_and_store(qkv, tokens, {int(s.heads), w.q_norm, w.k_norm, s.eps}, {cos, sin}, step->loc, pages);
    mark(Stage::rope_store, n);
    attend({qkv, width, pages, step->cu_q, step->seq_lens, step->page_table, step->max_pages, int(step->rows),
            int(s.heads), s.scale, s.softcap, w.sinks, int(w.window), attended});
    mark(Stage::attention, n);
    linear(w.out, activations(w.out, attended, tokens, quantised), tokens, hidden, Epilogue::residual);
    mark(Stage::out, n);
    x = activations(w.gate_up, hidden, tokens, quantised, w.mlp_norm, s.eps, normed);
    mark(Stage::mlp_norm, n);
    linear(w.gate_up, x, tokens, active, Epilogue::silu_mul);
    mark(Stage::up, n);
    linear(w.down, activations(w.down, active, tokens, quantised), tokens, hidden, Epilogue::residual);
    mark(Stage::down, n);
  }
}
}
