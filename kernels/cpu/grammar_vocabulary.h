// The tokens of a model, and which of them begin a text.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstring>
#include <vector>

#include "grammar.h"

namespace sgl::grammar {

// The first of the usual tokens of a text, or a negative number.
using Usual = int32_t (*)(const char* text, int64_t size);

struct Vocabulary {
  // Nodes of the tree of all tokens, each before those below it.
  struct Node {
    int32_t token;  // negative: none
    int32_t skip;   // nodes from here to the next that is not below
    uint16_t depth;
    uint8_t byte;
  };
  std::vector<char> bytes;
  std::vector<int64_t> begins;  // [tokens + 1]
  std::vector<Node> tree;
  std::vector<int32_t> sorted;  // the tokens that have text
  int32_t longest = 0;
  int64_t words;                // of a mask, the bit of the end behind those of the tokens included
  Classes classes;
  Usual usual;
  mutable std::atomic<uint32_t> turn{0};  // whose it is to be asked first

  int32_t size() const { return int32_t(begins.size()) - 1; }
  const uint8_t* text(int32_t token) const { return (const uint8_t*)bytes.data() + begins[token]; }
  int32_t length(int32_t token) const { return int32_t(begins[token + 1] - begins[token]); }

  void fetch(int64_t token) const {
    if (token < size()) __builtin_prefetch(text(int32_t(token)));
  }

  int compare(int32_t token, const char* other, int64_t size) const {
    int found = std::memcmp(text(token), other, size_t(std::min<int64_t>(length(token), size)));
    return found ? found : length(token) < size ? -1 : length(token) > size;
  }

  void grow() {
    for (int32_t token = 0; token < size(); ++token) {
      if (length(token) && length(token) <= UINT16_MAX) sorted.push_back(token);
      longest = std::max(longest, length(token));
    }
    std::sort(sorted.begin(), sorted.end(), [&](int32_t one, int32_t two) {
      int found = compare(one, (const char*)text(two), length(two));
      return found ? found < 0 : one < two;
    });
    std::vector<int32_t> open;  // the nodes above
    for (size_t i = 0; i < sorted.size(); ++i) {
      const uint8_t* own = text(sorted[i]);
      int32_t size = length(sorted[i]), common = 0;
      while (common < std::min<int32_t>(size, int32_t(open.size())) && tree[open[common]].byte == own[common]) ++common;
      bool is_again = common == size;  // the same text under another number: a leaf beside it
      close(open, is_again ? size - 1 : common);
      for (int32_t depth = is_again ? size - 1 : common; depth < size; ++depth) {
        open.push_back(int32_t(tree.size()));
        tree.push_back({depth + 1 == size ? sorted[i] : -1, 0, uint16_t(depth), own[depth]});
      }
    }
    close(open, 0);
  }

  void close(std::vector<int32_t>& open, int32_t depth) {
    for (; int32_t(open.size()) > depth; open.pop_back())
      tree[open.back()].skip = int32_t(tree.size()) - open.back();
  }

  // The bytes at the beginning of a text that no token could share with what follows it.
  int64_t settled(const char* text, int64_t size) const {
    for (int64_t at = std::max<int64_t>(size - longest, 0); at < size; ++at) {
      auto place = std::upper_bound(sorted.begin(), sorted.end(), 0, [&](int, int32_t token) {
        return compare(token, text + at, size - at) > 0;
      });
      if (place != sorted.end() && length(*place) > size - at && !std::memcmp(this->text(*place), text + at, size_t(size - at)))
        return at;
    }
    return size;
  }
};

}  // namespace sgl::grammar
