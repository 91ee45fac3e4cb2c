// Reads regular expressions, and rules that are made of them, into an automaton over UTF-8.
//
// The dialect is the common ground of Rust's and Python's; whatever they do not agree on is refused. In rules, (?&3)
// stands for the rule in line 3, and (?"...) for all strings in which the pattern is found, as JSON writes them.
#include <algorithm>
#include <map>
#include <tuple>

#include "grammar.h"

namespace sgl::grammar {
namespace {

constexpr uint32_t kLastPoint = 0x10ffff;
constexpr int64_t kMaxText = 4 << 20;  // bytes
constexpr int64_t kMaxParts = 1 << 20;  // nodes and what they consist of
constexpr int32_t kMaxStates = 1 << 18, kMaxEdges = 1 << 20, kMaxBuilt = 1 << 20;
constexpr int32_t kMaxCount = 100'000, kUnbounded = -1;
constexpr int kMaxDepth = 400;
constexpr size_t kMaxInline = 16;  // byte sequences of a set that every place has for itself

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

// ---- sets of code points --------------------------------------------------------------------------------------------

void settle(Ranges& ranges) {
  std::sort(ranges.begin(), ranges.end());
  Ranges joined;
  for (auto [low, high] : ranges) {
    if (!joined.empty() && low <= joined.back().second + 1) joined.back().second = std::max(joined.back().second, high);
    else joined.push_back({low, high});
  }
  ranges = std::move(joined);
}

Ranges without(const Ranges& from, const Ranges& less) {  // both settled
  Ranges kept;
  for (auto [low, high] : from) {
    uint32_t at = low;
    bool is_left = true;
    for (auto [begin, end] : less) {
      if (end < at || begin > high) continue;
      if (begin > at) kept.push_back({at, begin - 1});
      if (end >= high) {
        is_left = false;
        break;
      }
      at = end + 1;
    }
    if (is_left) kept.push_back({at, high});
  }
  return kept;
}

const Ranges kAll{{0, kLastPoint}}, kSurrogates{{0xd800, 0xdfff}}, kEscaped{{0, 0x1f}, {'"', '"'}, {'\\', '\\'}};

bool contains(const Ranges& ranges, uint32_t point) {  // settled
  for (auto [low, high] : ranges)
    if (point <= high) return low <= point;
  return false;
}

// ---- the text -------------------------------------------------------------------------------------------------------

std::vector<uint32_t> decoded(const char* text, int64_t size) {
  std::vector<uint32_t> points;
  points.reserve(size_t(size));
  for (int64_t i = 0; i < size;) {
    uint8_t lead = uint8_t(text[i++]);
    int more = lead < 0x80 ? 0 : lead >> 5 == 6 ? 1 : lead >> 4 == 14 ? 2 : 3;
    uint32_t point = more ? lead & (0x3f >> more) : lead;
    for (; more && i < size; --more) point = point << 6 | (uint8_t(text[i++]) & 0x3f);
    points.push_back(point);
  }
  return points;
}

class Reader {
 public:
  Reader(std::vector<uint32_t> text, bool has_rules, const Classes& classes)
      : text_(std::move(text)), has_rules_(has_rules), classes_(classes) {}

  Tree read() {
    tree_.rules.push_back(choice(0, true, false));
    while (has_rules_ && take('\n')) tree_.rules.push_back(choice(0, true, false));
    if (!at_end()) refuse("an unmatched )");
    for (const Node& node : tree_.nodes)
      if (node.kind == Node::call && node.rule >= int32_t(tree_.rules.size())) refuse("an unknown rule");
    return std::move(tree_);
  }

 private:
  bool at_end() const { return at_ >= text_.size(); }
  uint32_t peek(size_t ahead = 0) const { return at_ + ahead < text_.size() ? text_[at_ + ahead] : ~0u; }
  bool take(uint32_t point) { return peek() == point ? ++at_, true : false; }
  bool take(const char* word) {
    size_t size = 0;
    for (; word[size]; ++size)
      if (peek(size) != uint8_t(word[size])) return false;
    at_ += size;
    return true;
  }

  [[noreturn]] void refuse(const char* what) const {
    throw Refusal{std::string(what) + " at position " + std::to_string(at_)};
  }

  bool at_border() const { return at_end() || peek() == '|' || peek() == ')' || (has_rules_ && peek() == '\n'); }

  // With is_whole, ^ and $ around an alternative are the borders of the text; with is_searched, they are needed for it.
  int32_t choice(int depth, bool is_whole, bool is_searched) {
    if (depth > kMaxDepth) refuse("too many brackets inside each other");
    Node found{Node::choice};
    do found.parts.push_back(sequence(depth, is_whole, is_searched));
    while (take('|'));
    return found.parts.size() == 1 ? found.parts[0] : tree_.add(std::move(found));
  }

  int32_t sequence(int depth, bool is_whole, bool is_searched) {
    Node found{Node::sequence};
    bool begins = is_whole && take('^'), ends = false;
    if (is_searched && !begins) found.parts.push_back(anything());
    while (!at_border() && !ends) {
      if (is_whole && peek() == '$') {
        ++at_;
        if (!at_border()) refuse("a $ within the text");
        ends = true;
      } else {
        found.parts.push_back(item(depth));
      }
    }
    if (is_searched && !ends) found.parts.push_back(anything());
    return found.parts.size() == 1 ? found.parts[0] : tree_.add(std::move(found));
  }

  int32_t anything() { return repeat(set(kAll), 0, kUnbounded); }

  int32_t repeat(int32_t part, int32_t least, int32_t most) {
    Node found{Node::repeat};
    found.parts = {part};
    found.least = least, found.most = most;
    return tree_.add(std::move(found));
  }

  int32_t item(int depth) {
    int32_t part = atom(depth);
    int32_t least = 0, most = kUnbounded;
    if (take('*')) {
    } else if (take('+')) {
      least = 1;
    } else if (take('?')) {
      most = 1;
    } else if (take('{')) {
      most = least = count();
      if (take(',')) most = peek() == '}' ? kUnbounded : count();
      if (!take('}') || (most != kUnbounded && most < least)) refuse("a wrong repetition");
    } else {
      return part;
    }
    take('?');  // lazy: the same texts
    if (peek() == '*' || peek() == '+' || peek() == '?' || peek() == '{') refuse("a repetition of a repetition");
    return repeat(part, least, most);
  }

  int32_t count() {
    if (peek() < '0' || peek() > '9') refuse("a wrong repetition");
    int32_t value = 0;
    while (peek() >= '0' && peek() <= '9') {
      value = value * 10 + int32_t(text_[at_++] - '0');
      if (value > kMaxCount) refuse("a large repetition");
    }
    return value;
  }

  int32_t atom(int depth) {
    uint32_t point = text_[at_++];
    switch (point) {
      case '(': return group(depth);
      case '[': return set(bracketed());
      case '.': return set(without(kAll, {{'\n', '\n'}}));
      case '\\': return set(escape());
      case '^': case '$': case '*': case '+': case '?': case '{':
        --at_;
        refuse("a sign that has no meaning here");
    }
    return set({{point, point}});
  }

  int32_t group(int depth) {
    int32_t found;
    if (has_rules_ && take("?&")) {
      Node node{Node::call};
      node.rule = count();
      found = tree_.add(std::move(node));
    } else if (has_rules_ && take("?\"")) {
      is_quoted_ = true;
      found = choice(depth + 1, true, true);
      is_quoted_ = false;
    } else {
      if (take("?P<") || (take("?<") && peek() != '=' && peek() != '!')) {
        while (!at_end() && !take('>')) {
          bool is_letter = (peek() | 32) >= 'a' && (peek() | 32) <= 'z';
          if (!is_letter && peek() != '_' && (peek() < '0' || peek() > '9')) refuse("a wrong name");
          ++at_;
        }
      } else if (peek() == '?' && !take("?:")) {
        refuse("a group with flags or conditions");
      }
      found = choice(depth + 1, false, false);
    }
    if (!take(')')) refuse("an unmatched (");
    return found;
  }

  Ranges bracketed() {
    bool is_negated = take('^');
    Ranges found;
    for (bool is_first = true; is_first || peek() != ']'; is_first = false) {
      if (at_end()) refuse("an unmatched [");
      if (peek() == '[') refuse("a [ within [");
      if (peek() == peek(1) && (peek() == '&' || peek() == '-' || peek() == '~')) refuse("an operation on sets");
      Ranges low = member();
      bool is_range = peek() == '-' && peek(1) != ']';
      if (is_range) {
        ++at_;
        Ranges high = peek() == '[' || at_end() ? Ranges{} : member();
        if (!is_point(low) || !is_point(high) || low[0].first > high[0].first) refuse("a wrong range");
        low[0].second = high[0].first;
        if (peek() == '-' && peek(1) != ']') refuse("a wrong range");
      }
      tree_.count(low.size());
      found.insert(found.end(), low.begin(), low.end());
    }
    ++at_;
    settle(found);
    return is_negated ? without(kAll, found) : found;
  }

  static bool is_point(const Ranges& ranges) { return ranges.size() == 1 && ranges[0].first == ranges[0].second; }

  Ranges member() {
    uint32_t point = text_[at_++];
    return point == '\\' ? escape() : Ranges{{point, point}};
  }

  Ranges escape() {
    if (at_end()) refuse("a backslash without a character");
    uint32_t point = text_[at_++];
    switch (point) {
      case 'd': return classes_.digit;
      case 's': return classes_.space;
      case 'w': return classes_.word;
      case 'D': return without(kAll, classes_.digit);
      case 'S': return without(kAll, classes_.space);
      case 'W': return without(kAll, classes_.word);
      case 'n': return {{'\n', '\n'}};
      case 't': return {{'\t', '\t'}};
      case 'r': return {{'\r', '\r'}};
      case 'f': return {{'\f', '\f'}};
      case 'v': return {{'\v', '\v'}};
      case 'x': return hex(2);
      case 'u': return hex(4);
    }
    bool is_sign = point < 0x80 && point > ' ' && !(point >= '0' && point <= '9') &&
                   !((point | 32) >= 'a' && (point | 32) <= 'z') && point != '<' && point != '>';
    if (!is_sign) refuse("an escape of unclear meaning");
    return {{point, point}};
  }

  Ranges hex(int size) {
    uint32_t point = 0;
    for (; size; --size, ++at_) {
      uint32_t digit = peek(), letter = digit | 32;
      if (digit >= '0' && digit <= '9') point = point << 4 | (digit - '0');
      else if (letter >= 'a' && letter <= 'f') point = point << 4 | (letter - 'a' + 10);
      else refuse("a wrong number of a character");
    }
    return {{point, point}};
  }

  // ---- nodes

  int32_t plain(Ranges ranges) {
    Node node{Node::set};
    node.ranges = without(ranges, kSurrogates);
    return tree_.add(std::move(node));
  }

  int32_t word(const char* text, int32_t last) {
    Node node{Node::sequence};
    for (; *text; ++text) node.parts.push_back(plain({{uint8_t(*text), uint8_t(*text)}}));
    node.parts.push_back(last);
    return tree_.add(std::move(node));
  }

  int32_t set(const Ranges& ranges) {
    if (!is_quoted_) return plain(ranges);
    Node node{Node::choice};
    node.parts.push_back(plain(without(ranges, kEscaped)));
    Ranges letters;
    for (const char* pair : {"\"\"", "\\\\", "\bb", "\ff", "\nn", "\rr", "\tt"})
      if (contains(ranges, uint8_t(pair[0]))) letters.push_back({uint8_t(pair[1]), uint8_t(pair[1])});
    settle(letters);
    if (!letters.empty()) node.parts.push_back(word("\\", plain(letters)));
    for (uint32_t high = 0; high < 2; ++high) {
      Ranges digits;
      for (uint32_t low = 0; low < 16; ++low) {
        if (!contains(ranges, high * 16 + low)) continue;
        for (const char* names : {"0123456789abcdef", "0123456789ABCDEF"})
          digits.push_back({uint8_t(names[low]), uint8_t(names[low])});
      }
      settle(digits);
      if (!digits.empty()) node.parts.push_back(word(high ? "\\u001" : "\\u000", plain(digits)));
    }
    return node.parts.size() == 1 ? node.parts[0] : tree_.add(std::move(node));
  }

  std::vector<uint32_t> text_;
  const bool has_rules_;
  const Classes& classes_;
  size_t at_ = 0;
  bool is_quoted_ = false;
  Tree tree_;
};

// ---- the automaton --------------------------------------------------------------------------------------------------

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
  if (size > kMaxText) throw Refusal{"it is too large"};
  return Builder(Reader(decoded(text, size), has_rules, classes).read(), horizon).build();
}

}  // namespace sgl::grammar
