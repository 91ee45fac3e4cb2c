// Tokens drawn at random from filtered distributions, one row after the other. What they mean, and why sums are of whole
// numbers, says kernels/ops/draw.py; the random numbers are those of kernels/ops/random.py.
#include <cmath>
#include <vector>

#include "kernels.h"

namespace sgl {

constexpr float kOne = float(int64_t(1) << 40);  // stands for probability 1
constexpr int64_t kBlock = 1024;                 // tokens whose sum is kept, a multiple of kLanes

struct Filter {
  float temperature;
  int64_t top_k;
  float top_p, min_p;
};

// The whole number that stands for a probability; none for what cannot be one, which only NaN leads to.
static inline int64_t share_of(float prob) { return prob <= 1.0f ? int64_t(prob * kOne) : 0; }

// probs = softmax(logits / temperature), filled up with zeros to whole lanes; returns the largest.
static float softmax(const float* logits, int64_t width, float temperature, float* probs) {
  f32x16 top = splat(-INFINITY), heat = splat(temperature);
  int64_t i = 0;
  auto keep = [&](f32x16 scores) {
    scores = scores / heat;
    top = max_lanes(top, scores);
    store(probs + i, scores);
  };
  for (; i + kLanes <= width; i += kLanes) keep(load(logits + i));
  if (i < width) {
    f32x16 rest = splat(-INFINITY);
    for (int64_t lane = 0; lane < width - i; ++lane) rest[lane] = logits[i + lane];
    keep(rest);
  }
  f32x16 peak = splat(max_lane(top)), sum{};
  for (i = 0; i < width; i += kLanes) {
    f32x16 e = exp_lanes(load(probs + i) - peak);
    sum += e;
    store(probs + i, e);
  }
  float inverse = 1.0f / sum_lanes(sum);
  for (i = 0; i < width; i += kLanes) store(probs + i, load(probs + i) * inverse);
  return inverse;
}

// The least of the numbers that stand behind fewer than `most` larger ones, whose shares sum to `limit` at most. Found
// digit by digit of its binary form, most significant first.
static float least_of(const float* probs, int64_t width, int64_t most, int64_t limit) {
  struct Bin {
    int64_t count, share;
  };
  static thread_local Bin bins[1 << 11];
  constexpr int digits[][2] = {{20, 11}, {10, 10}, {0, 10}};  // shift and width, of the 31 bits beside the sign
  uint32_t found = 0;
  Bin larger{0, 0};
  for (auto [shift, bits] : digits) {
    int size = 1 << bits;
    std::memset(bins, 0, size * sizeof(Bin));
    for (int64_t i = 0; i < width; ++i) {
      uint32_t value;
      std::memcpy(&value, probs + i, 4);
      if (value >> shift >> bits != found) continue;
      Bin& bin = bins[value >> shift & (size - 1)];
      bin.count += 1;
      bin.share += share_of(probs[i]);
    }
    int digit = 0;
    Bin before = larger;
    for (int i = size - 1; i >= 0 && larger.count < most && larger.share <= limit; --i) {
      if (!bins[i].count) continue;
      digit = i;
      before = larger;
      larger = {larger.count + bins[i].count, larger.share + bins[i].share};
    }
    found = found << bits | uint32_t(digit);
    larger = before;
  }
  float least;
  std::memcpy(&least, &found, 4);
  return least;
}

// The least probability that stays under top-k and top-p: `least_of`, which looks at the larger ones only, as far as
// they are enough to tell.
static float floor_of(const float* probs, int64_t width, float peak, int64_t most, int64_t limit) {
  static thread_local std::vector<float> large;
  for (float part : {0x1p-2f, 0x1p-5f, 0x1p-10f, 0x1p-20f}) {
    f32x16 bound = splat(peak * part);
    large.clear();
    int64_t share = 0;
    for (int64_t i = 0; i < width; i += kLanes) {
      i32x16 reaches = load(probs + i) >= bound;
      if (!sum_lanes(reaches)) continue;
      for (int64_t lane = i; lane < i + kLanes; ++lane)
        if (probs[lane] >= peak * part) large.push_back(probs[lane]), share += share_of(probs[lane]);
    }
    if (share > limit || int64_t(large.size()) >= most) return least_of(large.data(), large.size(), most, limit);
  }
  return least_of(probs, width, most, limit);
}

// The token in whose span of the cumulative distribution `number`, of [0, 1), lies.
static int64_t token_at(const float* probs, int64_t width, float floor, double number) {
  static thread_local std::vector<int64_t> sums;
  sums.clear();
  auto kept = [&](int64_t i) { return probs[i] >= floor ? share_of(probs[i]) : 0; };
  int64_t total = 0;
  for (int64_t begin = 0; begin < width; begin += kBlock) {
    int64_t end = begin + kBlock < width ? begin + kBlock : width, sum = 0;
    for (int64_t i = begin; i < end; ++i) sum += kept(i);
    sums.push_back(total += sum);
  }
  int64_t target = int64_t(number * double(total)), block = 0;
  while (block + 1 < int64_t(sums.size()) && sums[block] <= target) ++block;
  int64_t sum = block ? sums[block - 1] : 0, i = block * kBlock;
  while (i + 1 < width && (sum += kept(i)) <= target) ++i;
  return i;
}

static double uniform(uint64_t stream, uint64_t counter) {
  uint64_t z = stream + (counter + 1) * 0x9E3779B97F4A7C15;
  z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9;
  z = (z ^ z >> 27) * 0x94D049BB133111EB;
  return double((z ^ z >> 31) >> 11) * 0x1p-53;
}

static int64_t draw_row(const float* logits, int64_t width, const Filter& filter, double number) {
  static thread_local std::vector<float> probs;
  probs.resize((width + kLanes - 1) / kLanes * kLanes);
  float peak = softmax(logits, width, filter.temperature, probs.data()), floor = 0.0f;
  bool has_top_k = filter.top_k >= 1 && filter.top_k < width, has_top_p = filter.top_p < 1.0f;
  if (has_top_k || has_top_p)
    floor = floor_of(probs.data(), width, peak, has_top_k ? filter.top_k : width,
                     has_top_p ? int64_t(filter.top_p * kOne) : INT64_MAX);
  float least = filter.min_p > 0.0f ? peak * filter.min_p : 0.0f;
  return token_at(probs.data(), width, floor < least ? least : floor, number);
}

}  // namespace sgl

using namespace sgl;

extern "C" {

// tokens [N] from logits [N, width] and N numbers of every filter and of the places in streams of random numbers.
void sgl_draw(const float* logits, int64_t rows, int64_t width, const float* temperature, const int64_t* top_k,
              const float* top_p, const float* min_p, const int64_t* streams, const int64_t* counters,
              int64_t* tokens) {
  auto body = [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
      tokens[r] = draw_row(logits + r * width, width, {temperature[r], top_k[r], top_p[r], min_p[r]},
                           uniform(uint64_t(streams[r]), uint64_t(counters[r])));
  };
  if (rows * width < 16384) body(0, rows);
  else parallel(rows, body);
}

}  // extern "C"
