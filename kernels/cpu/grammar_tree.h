// What grammars are read into before they become automata; see grammar_text.cpp and grammar_nfa.cpp.
#pragma once

#include <utility>
#include <vector>

#include "grammar.h"

namespace sgl::grammar {

constexpr uint32_t kLastPoint = 0x10ffff;
constexpr int64_t kMaxParts = 1 << 20;  // nodes and what they consist of
constexpr int32_t kUnbounded = -1;

struct Node {
  enum Kind { set, sequence, choice, repeat, call } kind;
  std::vector<int32_t> parts{};
  Ranges ranges{};
  int32_t least = 0, most = 0;  // of a repeat
  int32_t rule = 0;             // of a call
};

struct Tree {
  std::vector<Node> nodes;
  std::vector<int32_t> rules;
  int64_t num_parts = 0;

  // Before they are made: what is refused has cost next to nothing.
  void count(size_t parts) {
    num_parts += int64_t(parts);
    if (num_parts > kMaxParts) throw Refusal{"it is too large"};
  }

  int32_t add(Node node) {
    count(1 + node.parts.size() + node.ranges.size());
    nodes.push_back(std::move(node));
    return int32_t(nodes.size()) - 1;
  }
};

// What is in one and not in the other, of code points that are sorted and apart.
Ranges without(const Ranges& from, const Ranges& less);

// Throws Refusal, as `read` does.
Tree parse(const char* text, int64_t size, bool has_rules, const Classes& classes);

}  // namespace sgl::grammar
