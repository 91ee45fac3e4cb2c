// The kernels as C++ sees them; each is defined in the file of its name.
#pragma once

#include "common.h"

namespace sgl {

// attention.cpp
constexpr int kSub = 16;  // tokens of a sub-page, the unit of the cache layout

struct Batch {
  const bf16* q;              // [T, H, D], token stride ldq
  int64_t ldq;
  const bf16 *k, *v;          // [pages, Hkv, page_size * D]
  const int32_t* cu_q;        // [B + 1]
  const int32_t* seq_lens;    // [B]
  const int32_t* page_table;  // [B, max_pages]
  int64_t max_pages;
  int rows, heads, kv_heads, dim, page_size;
  float scale;
  int window;                 // 0: none; else the number of tokens, itself included, that a query sees
  bf16* out;                  // [T, H, D]
};
void attend(const Batch& b);

// linear.cpp
enum class Epilogue { none, residual, silu_mul };

// out [rows, columns] = x [rows, inner] W^T + bias. With residual, out += that; with silu_mul every panel holds 32 gate
// and 32 up columns and out is [rows, columns / 2].
void linear(const bf16* x, int64_t rows, int64_t inner, const bf16* packed, int64_t columns, const float* bias,
            bf16* out, Epilogue epilogue);

// elementwise.cpp
// out = x / rms(x) * weight, rounded to bf16 before the weight as transformers does.
void rms_norm(const bf16* x, int64_t rows, int64_t width, const bf16* weight, float eps, bf16* out);

struct Rope {
  const float *cos, *sin;        // [T, dim / 2]
};

// In place on the q and k heads of qkv [T, (H + 2 Hkv) D]: optional per-head RMS norm, then rotation of the halves
// (NeoX style); k and v then go to their pages.
struct Heads {
  int heads, kv_heads, dim, page_size;
  const bf16 *q_norm, *k_norm;   // [D] or null
  float eps;
};
void rope_and_store(bf16* qkv, int64_t tokens, const Heads& heads, const Rope& rope, const int64_t* loc, bf16* k_cache,
                    bf16* v_cache);

}  // namespace sgl
