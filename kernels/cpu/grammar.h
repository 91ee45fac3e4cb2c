// Grammars as automata over bytes: grammar_text.cpp reads them, grammar_nfa.cpp builds them, grammar_automaton.cpp runs
// them.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace sgl::grammar {

// Code points, sorted and apart.
using Ranges = std::vector<std::pair<uint32_t, uint32_t>>;

// What \d, \s and \w mean.
struct Classes {
  Ranges digit, space, word;
};

// Why a grammar cannot be had, for people.
struct Refusal {
  std::string reason;
};

// Which states follow which; a rule is a part that others call and that returns to where they go on.
struct Nfa {
  struct Edge {
    uint8_t low, high;  // bytes at first, their classes in the end
    int32_t to;
  };
  struct Call {
    int32_t start, to;  // of the rule, and behind it
    bool is_last;       // nothing follows in the calling rule
  };
  // Of state s: edges[edge_of[s] .. edge_of[s + 1]), and so on.
  std::vector<int32_t> edge_of, jump_of, call_of;
  std::vector<Edge> edges;
  std::vector<int32_t> jumps;
  std::vector<Call> calls;
  std::vector<uint8_t> ends;        // the end of some rule
  std::vector<int32_t> alike;       // a state from which the same texts of at most `horizon` bytes lead on
  int32_t start;
  std::array<uint8_t, 256> class_of;  // bytes of one class are never told apart; classes are runs of bytes
  std::vector<uint8_t> first_byte;    // by class
  std::vector<int32_t> num_bytes;     // by class

  int64_t bytes() const {
    return int64_t(ends.size()) * 17 + int64_t(edges.size() * sizeof(Edge) + jumps.size() * 4 + calls.size() * sizeof(Call));
  }
};

// The automaton of rules, one a line and the first the whole; a single regular expression if has_rules is false.
// Throws Refusal.
Nfa read(const char* text, int64_t size, bool has_rules, const Classes& classes, int32_t horizon);

}  // namespace sgl::grammar
