// AMX: the eight tile registers of a thread, which multiply sixteen rows with sixteen columns at a time.
//
// A product of tiles sums over 64 bytes of inputs in a fixed order for every row and column by itself, so a result does
// not depend on how many rows are computed together.
#pragma once

#include <immintrin.h>

#include <array>

#include "common.h"

namespace sgl {

constexpr int kTileRows = 16;
constexpr int kTileBytes = 64;  // of a row of a tile

// Compilers do not know that tiles are loaded from memory and stored to it: what was written before is there to load,
// and what was stored is read only afterwards.
static inline void settle(const void* p) { asm volatile("" : : "r"(p) : "memory"); }

// Which rows the tiles of a thread have, and how long they are. Gives the registers back at its end, since the system
// saves them at every switch of threads while they are in use.
class Tiles {
 public:
  ~Tiles() {
    if (config_.palette) _tile_release();
  }

  // Products of up to sixteen rows: 0 to 3 are sums, 4 activations, 6 and 7 weights.
  void flat(int rows) { shape({rows, rows, rows, rows, rows, rows, kTileRows, kTileRows}); }

  // Products of up to 32: 0 and 1 are sums of sixteen rows and 4 their activations; 2, 3 and 5 those of `rows` more.
  void tall(int rows) { shape({kTileRows, kTileRows, rows, rows, kTileRows, rows, kTileRows, kTileRows}); }

  // Products of up to sixteen rows, as `flat`, of whole steps (4 and 6) and of `bytes` of one (5 and 7).
  void parted(int rows, int bytes) {
    shape({rows, rows, rows, rows, rows, rows, kTileRows, bytes / 4}, bytes);
  }
  void halved(int rows) { parted(rows, kTileBytes / 2); }

 private:
  struct alignas(64) Config {
    uint8_t palette = 0, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {};
    uint8_t rows[16] = {};
  } config_;

  void shape(std::array<int, 8> rows, int bytes_of_5 = kTileBytes) {
    Config config;
    config.palette = 1;
    for (int i = 0; i < 8; ++i) config.bytes[i] = kTileBytes, config.rows[i] = uint8_t(rows[i]);
    config.bytes[5] = uint16_t(bytes_of_5);
    if (!std::memcmp(&config, &config_, sizeof(Config))) return;
    config_ = config;
    settle(&config_);
    _tile_loadconfig(&config_);
  }
};

// Tiles 0 to 3 become zero.
static inline void clear_sums() {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}

// Tile 0, and 1 to 3 if N is four, side by side from [rows, N * 16] and into it.
template <int N>
static inline void load_sums(const float* from) {
  _tile_loadd(0, from, N * 64);
  if constexpr (N > 1) {
    _tile_loadd(1, from + kLanes, N * 64);
    _tile_loadd(2, from + 2 * kLanes, N * 64);
    _tile_loadd(3, from + 3 * kLanes, N * 64);
  }
}
template <int N>
static inline void store_sums(float* to) {
  _tile_stored(0, to, N * 64);
  if constexpr (N > 1) {
    _tile_stored(1, to + kLanes, N * 64);
    _tile_stored(2, to + 2 * kLanes, N * 64);
    _tile_stored(3, to + 3 * kLanes, N * 64);
  }
}

}  // namespace sgl
