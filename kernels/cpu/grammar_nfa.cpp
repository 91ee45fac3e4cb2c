// Makes the automaton over UTF-8 of what grammar_text.cpp has read.
#include <algorithm>
#include <map>
#include <tuple>

#include "grammar_tree.h"

namespace sgl::grammar {
namespace {

constexpr int32_t kMaxStates = 1 << 18, kMaxEdges = 1 << 20, kMaxBuilt = 1 << 20;
constexpr size_t kMaxInline = 16;  // byte sequences of a set that every place has for itself

struct Span {
  uint8_t low, high;
};
using Sequence = std::vector<Span>;

// Code points as sequences of bytes: within one, every byte may be any of its span.
void spell(uint32_t low, uint32_t high, std::vector<Sequence>& found) {
  for (uint32_t limit : {0x7fu, 0x7ffu, 0xffffu})
    if (low <= limit && high > limit) return spell(low, limit, found), spell(limit + 1, high, found);
  int size = high <= 0x7f ? 1 : high <= 0x7ff ? 2 : high <= 0xffff ? 3 : 4;
  for (int i = 1; i < size; ++i) {
    uint32_t mask = (1u << 6 * i) - 1;
    if ((low & ~mask) == (high & ~mask)) continue;
    if (low & mask) return spell(low, low | mask, found), spell((low | mask) + 1, high, found);
    if ((high & mask) != mask) return spell(low, (high & ~mask) - 1, found), spell(high & ~mask, high, found);
  }
  Sequence bytes;
  for (int i = size - 1; i >= 0; --i) {
    uint32_t lead = size == 1 ? 0 : i == size - 1 ? 0xf00u >> size & 0xff : 0x80, mask = i == size - 1 ? 0x7f : 0x3f;
    bytes.push_back({uint8_t(lead | (low >> 6 * i & mask)), uint8_t(lead | (high >> 6 * i & mask))});
  }
  found.push_back(std::move(bytes));
}

std::vector<Sequence> spelled(const Ranges& ranges) {
  std::vector<Sequence> found;
  for (auto [low, high] : ranges) spell(low, high, found);
  return found;
}

class Builder {
 public:
  Builder(Tree tree, int32_t horizon) : tree_(std::move(tree)), horizon_(horizon) {}

  Nfa build() {
    share();
    measure();
    for (size_t rule = 0; rule < tree_.rules.size(); ++rule) starts_.push_back(add()), ends_.push_back(add());
    for (size_t rule = 0; rule < tree_.rules.size(); ++rule) build(tree_.rules[rule], starts_[rule], ends_[rule]);
    trim();
    return flat();
  }

 private:
  struct Link {
    int32_t from, to;
    uint8_t low, high;
  };
  struct Jump {
    int32_t from, to;
  };
  struct Call {
    int32_t from, rule, to;
  };

  int32_t add() {
    if (int32_t(alike_.size()) == kMaxStates) throw Refusal{"it is too large"};
    alike_.push_back(int32_t(alike_.size()));
    return alike_.back();
  }

  void link(int32_t from, Span span, int32_t to) {
    if (int32_t(links_.size()) == kMaxEdges) throw Refusal{"it is too large"};
    links_.push_back({from, to, span.low, span.high});
  }

  void jump(int32_t from, int32_t to) {
    if (int32_t(jumps_.size()) == kMaxEdges) throw Refusal{"it is too large"};
    jumps_.push_back({from, to});
  }

  // Makes a rule, which all places call, of what takes many states in a set.
  void share() {
    std::map<Ranges, int32_t> rules;
    std::map<Ranges, bool> is_large;
    for (size_t i = 0, count = tree_.nodes.size(); i < count; ++i) {
      if (tree_.nodes[i].kind != Node::set || !has_many(tree_.nodes[i].ranges, is_large)) continue;
      Node ascii{Node::set}, other{Node::set}, call{Node::call}, both{Node::choice};
      ascii.ranges = without(tree_.nodes[i].ranges, {{0x80, kLastPoint}});
      other.ranges = without(tree_.nodes[i].ranges, {{0, 0x7f}});
      auto [place, is_new] = rules.try_emplace(other.ranges, int32_t(tree_.rules.size()));
      if (is_new) tree_.rules.push_back(tree_.add(other));
      call.rule = place->second;
      both.parts = {tree_.add(ascii), tree_.add(call)};
      tree_.nodes[i] = both;
    }
  }

  static bool has_many(const Ranges& ranges, std::map<Ranges, bool>& known) {
    if (ranges.size() > kMaxInline) return true;
    auto [place, is_new] = known.try_emplace(ranges, false);
    if (is_new) place->second = spelled(ranges).size() > kMaxInline;
    return place->second;
  }

  // The fewest bytes of each node, or fewer; what rules call is counted a few levels deep.
  void measure() {
    shortest_.assign(tree_.nodes.size(), 0);
    for (int round = 0; round < 4; ++round)
      for (size_t i = 0; i < tree_.nodes.size(); ++i) shortest_[i] = measured(tree_.nodes[i]);
  }

  int32_t measured(const Node& node) const {
    int64_t size = 0;
    switch (node.kind) {
      case Node::set: size = 1; break;
      case Node::sequence:
        for (int32_t part : node.parts) size += shortest_[part];
        break;
      case Node::choice:
        size = node.parts.empty() ? 0 : shortest_[node.parts[0]];
        for (int32_t part : node.parts) size = std::min<int64_t>(size, shortest_[part]);
        break;
      case Node::repeat: size = int64_t(shortest_[node.parts[0]]) * node.least; break;
      case Node::call: size = shortest_[tree_.rules[node.rule]]; break;
    }
    return int32_t(std::min<int64_t>(size, 1 << 20));
  }

  void call(int32_t from, int32_t rule, int32_t to) {
    if (int32_t(calls_.size()) == kMaxEdges) throw Refusal{"it is too large"};
    calls_.push_back({from, rule, to});
  }

  void build(int32_t index, int32_t from, int32_t to) {
    if (++num_built_ > kMaxBuilt) throw Refusal{"it is too large"};  // even of what adds nothing
    const Node& node = tree_.nodes[index];
    switch (node.kind) {
      case Node::set: return set(node.ranges, from, to);
      case Node::call: return call(from, node.rule, to);
      case Node::repeat: return repeat(node, from, to);
      case Node::choice:
        for (int32_t part : node.parts) build(part, from, to);
        return;
      case Node::sequence: {
        if (node.parts.empty()) return jump(from, to);
        for (size_t i = 0; i + 1 < node.parts.size(); ++i) {
          int32_t middle = add();
          build(node.parts[i], from, middle);
          from = middle;
        }
        return build(node.parts.back(), from, to);
      }
    }
  }

  void set(const Ranges& ranges, int32_t from, int32_t to) {
    std::map<std::tuple<uint8_t, uint8_t, int32_t>, int32_t> made;
    for (const Sequence& sequence : spelled(ranges)) {
      int32_t next = to;
      for (size_t i = sequence.size() - 1; i > 0; --i) {
        auto [place, is_new] = made.try_emplace({sequence[i].low, sequence[i].high, next}, -1);
        if (is_new) {
          place->second = add();
          link(place->second, sequence[i], next);
        }
        next = place->second;
      }
      link(from, sequence[0], next);
    }
  }

  void repeat(const Node& node, int32_t from, int32_t to) {
    int32_t part = node.parts[0], least = node.least, at = from;
    if (node.most == kUnbounded) {
      for (int32_t i = 0; i + 1 < least; ++i) {
        int32_t next = add();
        build(part, at, next);
        at = next;
      }
      int32_t begin = add(), end = add();
      jump(at, begin);
      build(part, begin, end);
      jump(end, begin);
      jump(end, to);
      if (!least) jump(at, to);
      return;
    }
    std::vector<int32_t> begins;  // of the states that each time has for itself
    for (int32_t i = 0; i < node.most; ++i) {
      if (i >= least) jump(at, to);
      begins.push_back(int32_t(alike_.size()));
      int32_t next = add();
      build(part, at, next);
      at = next;
    }
    jump(at, to);
    begins.push_back(int32_t(alike_.size()));
    liken(node, begins);
  }

  // From the midst of a repetition nobody sees its ends within the horizon, so it does not matter which time it is.
  void liken(const Node& node, const std::vector<int32_t>& begins) {
    int32_t step = shortest_[node.parts[0]];
    if (step == 0) return;
    int64_t reach = 1 + (horizon_ + step - 1) / step;
    for (int64_t i = 0; i < node.most; ++i) {
      int64_t model;
      if (i + reach < node.least) model = 0;
      else if (i + 1 >= node.least && i + reach < node.most) model = std::max(node.least - 1, 0);
      else continue;
      for (int32_t offset = 0; offset < begins[i + 1] - begins[i]; ++offset)
        alike_[begins[i] + offset] = alike_[begins[model] + offset];
    }
  }

  // Forgets whatever leads to no end.
  void trim() {
    int32_t count = int32_t(alike_.size());
    std::vector<std::vector<int32_t>> before(count), callers(starts_.size());  // callers: numbers of calls
    std::vector<std::vector<int32_t>> behind(count);                           // the same, by where they go on
    std::vector<int32_t> rule_of(count, -1), waiting;
    for (const Link& link : links_) before[link.to].push_back(link.from);
    for (const Jump& jump : jumps_) before[jump.to].push_back(jump.from);
    for (size_t i = 0; i < calls_.size(); ++i) {
      behind[calls_[i].to].push_back(int32_t(i));
      callers[calls_[i].rule].push_back(int32_t(i));
    }
    for (size_t rule = 0; rule < starts_.size(); ++rule) rule_of[starts_[rule]] = int32_t(rule);
    leads_.assign(count, 0);
    auto mark = [&](int32_t state) {
      if (!leads_[state]) leads_[state] = 1, waiting.push_back(state);
    };
    for (int32_t end : ends_) mark(end);
    while (!waiting.empty()) {
      int32_t state = waiting.back();
      waiting.pop_back();
      for (int32_t from : before[state]) mark(from);
      for (int32_t call : behind[state])
        if (leads_[starts_[calls_[call].rule]]) mark(calls_[call].from);
      if (rule_of[state] >= 0)
        for (int32_t call : callers[rule_of[state]])
          if (leads_[calls_[call].to]) mark(calls_[call].from);
    }
    if (!leads_[starts_[0]]) throw Refusal{"it allows no output"};
  }

  Nfa flat() {
    int32_t count = int32_t(alike_.size());
    Nfa nfa;
    nfa.start = starts_[0];
    nfa.alike = alike_;
    nfa.ends.assign(count, 0);
    for (int32_t end : ends_) nfa.ends[end] = 1;
    std::array<bool, 257> begins{};
    begins[0] = true;
    for (const Link& link : links_) begins[link.low] = begins[link.high + 1] = true;
    for (int byte = 0; byte < 256; ++byte) {
      if (begins[byte]) nfa.first_byte.push_back(uint8_t(byte)), nfa.num_bytes.push_back(0);
      nfa.class_of[byte] = uint8_t(nfa.first_byte.size() - 1);
      ++nfa.num_bytes.back();
    }
    sort_by_state(links_, nfa.edge_of, [&](const Link& link) {
      if (leads_[link.to]) nfa.edges.push_back({nfa.class_of[link.low], nfa.class_of[link.high], link.to});
    }, nfa.edges);
    sort_by_state(jumps_, nfa.jump_of, [&](const Jump& jump) {
      if (leads_[jump.to]) nfa.jumps.push_back(jump.to);
    }, nfa.jumps);
    sort_by_state(calls_, nfa.call_of, [&](const Call& call) {
      int32_t start = starts_[call.rule];
      if (leads_[call.to] && leads_[start]) nfa.calls.push_back({start, call.to, nfa.ends[call.to] != 0});
    }, nfa.calls);
    return nfa;
  }

  template <typename Items, typename Put, typename Out>
  void sort_by_state(Items& items, std::vector<int32_t>& place_of, Put put, const Out& out) {
    std::stable_sort(items.begin(), items.end(), [](auto& one, auto& two) { return one.from < two.from; });
    size_t i = 0;
    for (int32_t state = 0; state < int32_t(alike_.size()); ++state) {
      place_of.push_back(int32_t(out.size()));
      for (; i < items.size() && items[i].from == state; ++i) put(items[i]);
    }
    place_of.push_back(int32_t(out.size()));
  }

  Tree tree_;
  const int32_t horizon_;
  int32_t num_built_ = 0;
  std::vector<int32_t> shortest_;       // by node
  std::vector<int32_t> starts_, ends_;  // by rule
  std::vector<int32_t> alike_;
  std::vector<Link> links_;
  std::vector<Jump> jumps_;
  std::vector<Call> calls_;
  std::vector<uint8_t> leads_;  // by state: to an end of its rule
};

}  // namespace

Nfa read(const char* text, int64_t size, bool has_rules, const Classes& classes, int32_t horizon) {
  return Builder(parse(text, size, has_rules, classes), horizon).build();
}

}  // namespace sgl::grammar
