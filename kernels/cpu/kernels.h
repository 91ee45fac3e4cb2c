// The kernels as C++ sees them; each is defined in the file of its name.
#pragma once

#include "common.h"

namespace sgl {

// attention.cpp
constexpr int kSub = 16;  // tokens of a sub-page, the unit of the cache layout

// The pages of a layer in the order of attention.cpp: bf16, or bytes and a scale for every token.
struct Pages {
  void *k, *v;                // [pages, Hkv, page_size * D]; of latents v is k
  float *k_scale, *v_scale;   // [pages, Hkv, page_size], null where k and v are bf16
  int kv_heads, dim, page_size;
  int latent = 0;             // how many numbers of a key are its value, 0: keys and values are stored apart

  int value_dim() const { return latent ? latent : dim; }
};

struct Batch {
  const bf16* q;              // [T, H, D], token stride ldq
  int64_t ldq;
  Pages pages;
  const int32_t* cu_q;        // [B + 1]
  const int32_t* seq_lens;    // [B]
  const int32_t* page_table;  // [B, max_pages]
  int64_t max_pages;
  int rows, heads;
  float scale;
  float softcap;              // 0: none; else scores become softcap * tanh(score / softcap)
  const float* sinks;         // null or [H], the score of a key that every query sees and that has no value
  int window;                 // 0: none; else the number of tokens, itself included, that a query sees
  bf16* out;                  // [T, H, value_dim]
};
void attend(const Batch& b);

// quantize.cpp
enum class Format : int32_t { bf16, int8, int4, float8, code4 };
enum class Scales : int32_t { bf16, fp16, fp32 };
enum class Zeros : int32_t { middle, points, offsets };

// A packed weight [columns, inner], see linear.cpp; linear.py mirrors it field by field.
struct Weight {
  const uint8_t* data;
  const float* bias;             // a value for every column of every panel, or null
  int64_t inner, columns;
  Format format;
  int32_t group;                 // but bf16: inputs that share a scale, whole lines; of codes whole tiles, if not all
  Zeros zeros;                   // integers: zero points are 128 or 8, or stored, or 0 and something is added instead
  Scales scales;                 // but bf16: the type of scales
  int32_t digits;                // integers: bytes that an input becomes, one or three (quantize.cpp)
  const bf16* table;             // code4: what the sixteen codes stand for

  bool is_integer() const { return format == Format::int8 || format == Format::int4; }
};

// The rows that a weight is multiplied with, in the form that its format wants: bf16, or for integers signed bytes,
// `digits` rows of them for one, with a scale for every group of inputs of a row and a sum for every group of bytes.
struct Activations {
  const void* data;
  int64_t stride;                // bytes from row to row of bytes
  const float* scales;           // [rows, groups]
  const int32_t* sums;           // [rows * digits, groups]
};

// Bytes of scratch that `activations` uses for a row.
int64_t activation_bytes(const Weight& w);

// x [rows, inner], normalised into `normed` if there is a norm, then quantised into scratch if the weight is. What it
// returns may be the calling thread's own, and holds until that thread's next call.
Activations activations(const Weight& w, const bf16* x, int64_t rows, void* scratch, const bf16* norm = nullptr,
                        float eps = 0, bf16* normed = nullptr);

// linear.cpp
enum class Epilogue { none, residual, silu_mul };

// out [rows, columns] = x [rows, inner] W^T + bias. With residual, out += that; with silu_mul every panel holds 32 gate
// and 32 up columns and out is [rows, columns / 2].
void linear(const Weight& w, const Activations& x, int64_t rows, bf16* out, Epilogue epilogue);

// elementwise.cpp
// out = x / rms(x) * weight, rounded to bf16 before the weight as transformers does.
void norm_row(const bf16* x, int64_t width, const bf16* weight, float eps, bf16* out);

struct Rope {
  const float *cos, *sin;        // [T, dim / 2]
};

// In place on the q and k heads of qkv [T, (H + 2 Hkv) D]: optional per-head RMS norm, then rotation of the halves
// (NeoX style); k and v then go to their pages.
struct Heads {
  int heads;
  const bf16 *q_norm, *k_norm;   // [D] or null
  float eps;
};
void rope_and_store(bf16* qkv, int64_t tokens, const Heads& heads, const Rope& rope, const int64_t* loc,
                    const Pages& pages);

}  // namespace sgl
