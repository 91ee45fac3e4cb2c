// Reads regular expressions, and rules that are made of them.
//
// The dialect is the common ground of Rust's and Python's; whatever they do not agree on is refused. In rules, (?&3)
// stands for the rule in line 3, and (?"...) for all strings in which the pattern is found, as JSON writes them.
#include <algorithm>
#include <map>
#include <tuple>

#include "grammar_tree.h"

namespace sgl::grammar {
namespace {

constexpr int64_t kMaxText = 4 << 20;  // bytes
constexpr int32_t kMaxCount = 100'000;
constexpr int kMaxDepth = 400;

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

}  // namespace

Ranges without(const Ranges& from, const Ranges& less) {
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

namespace {

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

}  // namespace

Tree parse(const char* text, int64_t size, bool has_rules, const Classes& classes) {
  if (size > kMaxText) throw Refusal{"it is too large"};
  return Reader(decoded(text, size), has_rules, classes).read();
}

}  // namespace sgl::grammar
