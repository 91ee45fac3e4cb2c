// Runs grammars: which bytes and which tokens of a vocabulary may follow, found out when they are asked for and kept.
#include <algorithm>
#include <cmath>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <unordered_set>

#include "common.h"
#include "grammar.h"

namespace sgl::grammar {
namespace {

constexpr int32_t kUnknown = -1, kNone = -2;
// Steps of the search for what follows, of 3 to 17 ns. All texts of a call have kMaxWork in common, but each may take
// kOwnWork in any case, which ordinary grammars never need: only costly ones fail for what came before them. Only what
// is found out costs work, and what was found before work ran out is kept: the more is known of a grammar, the less can
// fail, until it forgets. What may follow never depends on it, only whether there is an answer.
constexpr int64_t kMaxWork = 1'000'000, kOwnWork = 1 << 17;
constexpr int64_t kUsualWork = 256;       // of a question to the tokenizer
constexpr int64_t kNodesAStep = 16;       // of the tree of tokens
constexpr int64_t kMaxKept = 16 << 20;    // bytes that a grammar keeps of what it has found out, from call to call
constexpr size_t kMaxForced = 256;        // bytes of forced text that are looked at together
constexpr uint8_t kOver = 1, kForced = 2, kFailed = 4;

// The first of the usual tokens of a text, or a negative number.
using Usual = int32_t (*)(const char* text, int64_t size);

// ---- the tokens of a model ------------------------------------------------------------------------------------------

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

// ---- automata -------------------------------------------------------------------------------------------------------

struct Overworked {};

// What is left of the work of a call.
struct Budget {
  int64_t left = kMaxWork;
};

// A place in the rules, and the places that they return to: a stack.
struct Place {
  int32_t state, stack;
  bool operator==(const Place& other) const { return state == other.state && stack == other.stack; }
  bool operator<(const Place& other) const {
    return state != other.state ? state < other.state : stack < other.stack;
  }
};

struct Frame {
  int32_t to, below;  // where it goes on; the stack under it, -1: nothing
};

uint64_t mixed(uint64_t a, uint64_t b) {
  uint64_t x = (a ^ b * 0x9e3779b97f4a7c15u) * 0xff51afd7ed558ccdu;
  return x ^ x >> 32;
}

struct Matcher;

// All that can be known of a text so far is a set of places. Such sets are numbered, and what follows them is kept.
class Automaton {
 public:
  Automaton(std::shared_ptr<const Vocabulary> vocabulary, Nfa nfa)
      : owner_(std::move(vocabulary)), vocabulary_(*owner_), nfa_(std::move(nfa)), num_classes_(int32_t(nfa_.first_byte.size())) {
    Budget budget;
    open(budget);
    begin();
  }

  struct Set {
    int64_t places;        // where they begin
    int32_t num_places;
    int32_t same_hash;     // another set of equal hash, or -1
    int32_t mask;          // number, or kUnknown
    int32_t forced;        // the only token that may come, kNone or kUnknown
    int16_t only_class;    // the class of bytes of which one must come, or kNone if there are several or none
    bool may_end, has_next;
  };

  std::recursive_mutex mutex;
  std::unordered_set<Matcher*> matchers;

  int32_t start() const { return start_; }
  const Set& set(int32_t number) const { return sets_[number]; }
  const Vocabulary& vocabulary() const { return vocabulary_; }

  // Begins with a text: what follows must not need more work than there is. Forgets everything if there is too much.
  void open(Budget& budget) {
    budget.left = std::max(budget.left, kOwnWork);
    budget_ = &budget;
    if (found_bytes() > max_found_) forget();
  }

  // Between two steps of a model all of this has left the caches.
  void fetch(int32_t set) const {
    __builtin_prefetch(&sets_[size_t(set)]);
    const int32_t* row = &next_[size_t(set) * size_t(num_classes_)];
    for (int32_t c = 0; c < num_classes_; c += 16) __builtin_prefetch(row + c);
  }

  int32_t next(int32_t set, int32_t byte_class) {
    int32_t found = next_[int64_t(set) * num_classes_ + byte_class];
    return found == kUnknown ? follow(set, byte_class) : found;
  }

  // After the text of a token, kNone if it does not fit.
  int32_t after(int32_t set, int32_t token) {
    const uint8_t* text = vocabulary_.text(token);
    int32_t size = vocabulary_.length(token);
    if (!size) return kNone;
    for (int32_t i = 0; i < size && set >= 0; ++i) set = next(set, nfa_.class_of[text[i]]);
    return set;
  }

  const uint32_t* mask(int32_t set) {
    if (sets_[set].mask == kUnknown) {
      int32_t model = alike(set);
      if (sets_[model].mask == kUnknown) sets_[model].mask = walk(model);
      sets_[set].mask = sets_[model].mask;
    }
    return masks_[sets_[set].mask].get();
  }

  // The token that comes next in any case, because the text is forced and the tokenizer would begin it so; or kNone.
  int32_t forced(int32_t set) {
    if (sets_[set].forced == kUnknown) sets_[set].forced = usual(set);
    return sets_[set].forced;
  }

  int64_t kept_bytes() const { return nfa_.bytes() + found_bytes(); }

 private:
  int64_t found_bytes() const {
    return int64_t(sets_.size()) * int64_t(sizeof(Set) + 32 + 4 * num_classes_) + int64_t(places_.size() * sizeof(Place)) +
           int64_t(frames_.size()) * 48 + int64_t(masks_.size()) * (vocabulary_.words * 4 + 16);
  }

  void work(int64_t amount) {
    if ((budget_->left -= amount) < 0) throw Overworked{};
  }

  void begin() {
    Closing closing;
    enter(closing, {nfa_.start, -1});
    start_ = number(closing);
  }

  // ---- stacks

  int32_t pushed(int32_t to, int32_t below) {
    uint64_t key = uint64_t(uint32_t(to)) << 32 | uint32_t(below);
    auto place = frame_numbers_.find(key);
    if (place != frame_numbers_.end()) return place->second;
    frames_.push_back({to, below});  // first: without memory for its number it is a frame that nobody knows
    return frame_numbers_.emplace(key, int32_t(frames_.size()) - 1).first->second;
  }

  // ---- sets

  struct Closing {
    std::vector<Place> kept, waiting;
    std::unordered_set<uint64_t> seen;
    bool may_end = false;
  };

  // Adds a place and all that are reached from it without a byte; keeps those that a byte leads on from.
  void enter(Closing& closing, Place first) {
    closing.waiting.push_back(first);
    while (!closing.waiting.empty()) {
      Place place = closing.waiting.back();
      closing.waiting.pop_back();
      work(1 + nfa_.edge_of[place.state + 1] - nfa_.edge_of[place.state]);
      if (!closing.seen.insert(uint64_t(uint32_t(place.state)) << 32 | uint32_t(place.stack)).second) continue;
      if (nfa_.edge_of[place.state] < nfa_.edge_of[place.state + 1]) closing.kept.push_back(place);
      for (int32_t i = nfa_.jump_of[place.state]; i < nfa_.jump_of[place.state + 1]; ++i)
        closing.waiting.push_back({nfa_.jumps[i], place.stack});
      for (int32_t i = nfa_.call_of[place.state]; i < nfa_.call_of[place.state + 1]; ++i) {
        const Nfa::Call& call = nfa_.calls[i];
        closing.waiting.push_back({call.start, call.is_last ? place.stack : pushed(call.to, place.stack)});
      }
      if (!nfa_.ends[place.state]) continue;
      if (place.stack < 0) closing.may_end = true;
      else closing.waiting.push_back({frames_[place.stack].to, frames_[place.stack].below});
    }
  }

  // Wherever this is left without memory or work, what is known stays whole.
  int32_t number(Closing& closing) {
    std::vector<Place>& places = closing.kept;
    if (places.empty() && !closing.may_end) return kNone;
    for (size_t rest = places.size(); rest; rest >>= 1) work(int64_t(places.size() + 7) / 8);  // of sorting
    std::sort(places.begin(), places.end());
    uint64_t hash = closing.may_end;
    for (const Place& place : places) hash = mixed(hash, uint64_t(uint32_t(place.state)) << 32 | uint32_t(place.stack));
    auto [head, is_new] = numbers_.try_emplace(hash, -1);
    for (int32_t other = head->second; other >= 0; other = sets_[other].same_hash) {
      const Set& known = sets_[other];
      if (known.num_places == int32_t(places.size()) && known.may_end == closing.may_end &&
          std::equal(places.begin(), places.end(), places_.begin() + known.places))
        return other;
    }
    if (found_bytes() > max_found_ + kMaxKept) throw Overworked{};
    Set set{int64_t(places_.size()), int32_t(places.size()), head->second, kUnknown, kUnknown, kNone, closing.may_end,
            !places.empty()};
    places_.insert(places_.end(), places.begin(), places.end());
    find_next(set, places);
    sets_.push_back(set);
    return head->second = int32_t(sets_.size()) - 1;
  }

  // A row of what follows: unknown where some byte of the class leads on.
  void find_next(Set& set, const std::vector<Place>& places) {
    size_t row = sets_.size() * size_t(num_classes_);
    next_.resize(row);  // without what an attempt has left
    next_.resize(row + size_t(num_classes_), kNone);
    work(num_classes_ / 8);
    int32_t count = 0;
    for (const Place& place : places) {
      for (int32_t i = nfa_.edge_of[place.state]; i < nfa_.edge_of[place.state + 1]; ++i) {
        work((nfa_.edges[i].high - nfa_.edges[i].low) / 8);
        for (int32_t c = nfa_.edges[i].low; c <= nfa_.edges[i].high; ++c) {
          if (next_[row + size_t(c)] == kUnknown) continue;
          next_[row + size_t(c)] = kUnknown;
          ++count;
          set.only_class = int16_t(c);
        }
      }
    }
    if (count != 1 || set.may_end || nfa_.num_bytes[set.only_class] != 1) {
      set.only_class = kNone;
      set.forced = kNone;
    }
  }

  int32_t follow(int32_t set, int32_t byte_class) {
    Closing closing;
    for (int32_t p = 0; p < sets_[set].num_places; ++p) {
      Place place = places_[size_t(sets_[set].places + p)];
      int32_t begin = nfa_.edge_of[place.state], end = nfa_.edge_of[place.state + 1];
      work(end - begin);
      for (int32_t i = begin; i < end; ++i)
        if (nfa_.edges[i].low <= byte_class && byte_class <= nfa_.edges[i].high)
          enter(closing, {nfa_.edges[i].to, place.stack});
    }
    int32_t found = number(closing);
    next_[size_t(set) * size_t(num_classes_) + size_t(byte_class)] = found;
    return found;
  }

  // A set that allows the same tokens, the same for many.
  int32_t alike(int32_t set) {
    Closing closing;
    closing.may_end = sets_[set].may_end;
    for (int32_t p = 0; p < sets_[set].num_places; ++p) {
      Place place = places_[size_t(sets_[set].places + p)];
      closing.kept.push_back({nfa_.alike[place.state], alike_stack(place.stack)});
    }
    std::sort(closing.kept.begin(), closing.kept.end());
    closing.kept.erase(std::unique(closing.kept.begin(), closing.kept.end()), closing.kept.end());
    return number(closing);
  }

  int32_t alike_stack(int32_t stack) {
    std::vector<int32_t> above;
    for (; stack >= 0; stack = frames_[stack].below) above.push_back(nfa_.alike[frames_[stack].to]);
    work(int64_t(above.size()));
    for (; !above.empty(); above.pop_back()) stack = pushed(above.back(), stack);
    return stack;
  }

  // Looks through the tree of all tokens, without the parts that do not fit.
  int32_t walk(int32_t set) {
    auto bits = std::make_unique<uint32_t[]>(size_t(vocabulary_.words));
    std::vector<int32_t> path(size_t(vocabulary_.longest) + 1);
    path[0] = set;
    const auto* tree = vocabulary_.tree.data();
    int64_t num_seen = 0;
    for (int32_t i = 0, count = int32_t(vocabulary_.tree.size()); i < count;) {
      if (++num_seen % kNodesAStep == 0) work(1);
      int32_t found = next(path[tree[i].depth], nfa_.class_of[tree[i].byte]);
      if (found < 0) {
        i += tree[i].skip;
        continue;
      }
      path[size_t(tree[i].depth) + 1] = found;
      if (tree[i].token >= 0) bits[tree[i].token >> 5] |= 1u << (tree[i].token & 31);
      ++i;
    }
    masks_.push_back(std::move(bits));
    return int32_t(masks_.size()) - 1;
  }

  int32_t usual(int32_t set) {
    std::string text;
    while (text.size() < kMaxForced && set >= 0 && sets_[set].only_class != kNone) {
      text.push_back(char(nfa_.first_byte[size_t(sets_[set].only_class)]));
      set = next(set, sets_[set].only_class);
    }
    bool is_over = set >= 0 && !sets_[set].has_next;
    int64_t size = int64_t(text.size()), settled = is_over ? size : vocabulary_.settled(text.data(), size);
    work(size + kUsualWork);
    if (!settled) return kNone;
    int32_t token = vocabulary_.usual(text.data(), size);
    bool fits = token >= 0 && token < vocabulary_.size() && vocabulary_.length(token) > 0 &&
                vocabulary_.length(token) <= settled &&
                !std::memcmp(vocabulary_.text(token), text.data(), size_t(vocabulary_.length(token)));
    return fits ? token : kNone;
  }

  void forget();
  int32_t carried(const Set& old, const std::vector<Place>& places, const std::vector<Frame>& frames);

  const std::shared_ptr<const Vocabulary> owner_;
  const Vocabulary& vocabulary_;
  const Nfa nfa_;
  const int32_t num_classes_;
  Budget* budget_ = nullptr;  // of the call that holds the lock
  int64_t max_found_ = kMaxKept;
  int32_t start_ = kNone;
  std::vector<Set> sets_;
  std::vector<Place> places_;
  std::vector<int32_t> next_;  // [sets, classes]
  std::vector<Frame> frames_;
  std::vector<std::unique_ptr<uint32_t[]>> masks_;
  std::unordered_map<uint64_t, int32_t> numbers_, frame_numbers_;
};

// One text on its way.
struct Matcher {
  const std::shared_ptr<Automaton> owner;
  Automaton& automaton;
  std::vector<int32_t> ends;  // tokens that end the text where it is complete
  int32_t set;        // of no meaning once it has failed
  bool has_failed;

  Matcher(std::shared_ptr<Automaton> of, const int32_t* ends, int64_t num_ends)
      : owner(std::move(of)), automaton(*owner), ends(ends, ends + num_ends) {
    std::lock_guard<std::recursive_mutex> lock(automaton.mutex);
    set = automaton.start();
    has_failed = set < 0;
    automaton.matchers.insert(this);
  }
  ~Matcher() {
    std::lock_guard<std::recursive_mutex> lock(automaton.mutex);
    automaton.matchers.erase(this);
  }

  bool may_end() const { return automaton.set(set).may_end; }
  bool is_end(int32_t token) const { return std::find(ends.begin(), ends.end(), token) != ends.end(); }

  bool advance(int32_t token) {
    if (token < 0 || token >= automaton.vocabulary().size()) return false;
    int32_t found = automaton.after(set, token);
    if (found < 0) return false;
    set = found;
    return true;
  }

  uint8_t flags() {
    if (has_failed) return kFailed;
    const Automaton::Set& own = automaton.set(set);
    if (own.may_end && !own.has_next) return kOver;
    return automaton.forced(set) >= 0 ? kForced : 0;
  }

  // Does something to the text; if it takes too much work or memory, the text cannot be followed any further.
  template <typename Action>
  uint8_t act(Budget& budget, Action action) {
    std::lock_guard<std::recursive_mutex> lock(automaton.mutex);
    try {
      automaton.open(budget);
      if (!has_failed) action();
      return flags();
    } catch (const Overworked&) {
    } catch (const std::bad_alloc&) {
    }
    has_failed = true;
    return kFailed;
  }

  int64_t settle(int64_t likeliest, const float* scores, int64_t width);
};

// All but where the texts are and where they begin. Takes no work from whoever happens to call; a text for which there
// is no memory fails.
void Automaton::forget() {
  std::vector<Set> sets = std::move(sets_);
  std::vector<Place> places = std::move(places_);
  std::vector<Frame> frames = std::move(frames_);
  sets_.clear(), places_.clear(), frames_.clear(), next_.clear(), masks_.clear();
  numbers_.clear(), frame_numbers_.clear();
  Budget free{INT64_MAX}, *asked = budget_;
  budget_ = &free;
  max_found_ = INT64_MAX - kMaxKept;
  auto carry = [&](int32_t set) {
    try {
      return carried(sets[size_t(set)], places, frames);
    } catch (const std::bad_alloc&) {
      return kNone;
    }
  };
  if (start_ >= 0) start_ = carry(start_);
  for (Matcher* matcher : matchers) {
    if (matcher->has_failed) continue;
    matcher->set = carry(matcher->set);
    matcher->has_failed = matcher->set < 0;
  }
  budget_ = asked;
  max_found_ = std::max(kMaxKept, 2 * found_bytes());  // the texts alone may be as much
}

int32_t Automaton::carried(const Set& old, const std::vector<Place>& places, const std::vector<Frame>& frames) {
  Closing closing;
  closing.may_end = old.may_end;
  for (int32_t p = 0; p < old.num_places; ++p) {
    Place place = places[size_t(old.places + p)];
    std::vector<int32_t> above;
    for (int32_t at = place.stack; at >= 0; at = frames[at].below) above.push_back(frames[at].to);
    int32_t stack = -1;
    for (; !above.empty(); above.pop_back()) stack = pushed(above.back(), stack);
    closing.kept.push_back({place.state, stack});
  }
  return number(closing);
}

// The token with the largest score among those that a mask of `count` bits allows, the first of equals; -1 if there is
// none with a finite one.
int64_t best_of(const float* scores, const uint32_t* mask, int64_t count, float& best) {
  const float forbidden = -INFINITY;
  i32x16 own{}, step{};
  for (int lane = 0; lane < kLanes; ++lane) own[lane] = 1 << lane;
  f32x16 top = splat(forbidden);
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    int32_t bits = int32_t(mask[i / 32] >> i % 32 & 0xffff);
    if (!bits) continue;
    f32x16 value = select((own & bits) > 0, load(scores + i), splat(forbidden));
    i32x16 larger = value > top;
    top = select(larger, value, top);
    step = (step & ~larger) | (larger & int32_t(i));
  }
  int64_t found = -1;
  best = forbidden;
  for (int lane = 0; lane < kLanes; ++lane) {
    int64_t place = step[lane] + lane;
    if (top[lane] > best || (top[lane] == best && found >= 0 && place < found)) best = top[lane], found = place;
  }
  for (; i < count; ++i)
    if ((mask[i / 32] >> i % 32 & 1) && scores[i] > best) best = scores[i], found = i;
  return std::isfinite(best) ? found : -1;
}

// The token that comes next: the likeliest if it may, else the likeliest of those that may. -1, and nothing has
// happened, if there is none, or if it is to be drawn at random (the likeliest is -1) and several may come.
int64_t Matcher::settle(int64_t likeliest, const float* scores, int64_t width) {
  int32_t only = automaton.forced(set);
  if (only >= 0) return advance(only), only;
  if (likeliest < 0) return -1;
  if (advance(int32_t(likeliest))) return likeliest;
  if (may_end() && is_end(int32_t(likeliest))) return likeliest;
  if (!scores) return -1;
  float best;
  int64_t found = best_of(scores, automaton.mask(set), std::min<int64_t>(width, automaton.vocabulary().size()), best);
  bool is_over = false;
  if (may_end())
    for (int32_t end : ends)
      if (end < width && std::isfinite(scores[end]) &&
          (found < 0 || scores[end] > best || (scores[end] == best && end < found)))
        found = end, best = scores[end], is_over = true;
  if (found >= 0 && !is_over) advance(int32_t(found));
  return found;
}

// A mask that allows nothing, not even the end, is a failure too: the vocabulary has no token for what must come.
void write(Matcher& matcher, Budget& budget, uint32_t* mask) {
  const Vocabulary& vocabulary = matcher.automaton.vocabulary();
  auto allow = [&](int32_t token) { mask[token >> 5] |= 1u << (token & 31); };
  uint8_t flags = matcher.act(budget, [&] {
    int32_t only = matcher.automaton.forced(matcher.set);
    if (only < 0) {
      std::memcpy(mask, matcher.automaton.mask(matcher.set), size_t(vocabulary.words) * 4);
      if (matcher.may_end()) allow(vocabulary.size());
      matcher.has_failed = std::all_of(mask, mask + vocabulary.words, [](uint32_t word) { return word == 0; });
    } else {
      std::memset(mask, 0, size_t(vocabulary.words) * 4);
      allow(only);
    }
  });
  if (flags & kFailed) {
    std::memset(mask, 0, size_t(vocabulary.words) * 4);
    allow(vocabulary.size());
  }
}

// Follows a grammar for a while, always by the token in the middle of those that may come.
void try_out(const std::shared_ptr<Automaton>& owner, int tokens) {
  Matcher matcher(owner, nullptr, 0);
  Automaton& automaton = *owner;
  for (int i = 0; i < tokens; ++i) {
    Budget budget;
    automaton.open(budget);
    int32_t token = automaton.forced(matcher.set);
    if (token < 0) {
      const uint32_t* mask = automaton.mask(matcher.set);
      std::vector<int32_t> allowed;
      for (int32_t other = 0; other < automaton.vocabulary().size(); ++other)
        if (mask[other >> 5] >> (other & 31) & 1) allowed.push_back(other);
      if (allowed.empty() && !matcher.may_end()) throw Refusal{i ? "it leads nowhere" : "it allows no output"};
      if (allowed.empty()) return;
      token = allowed[allowed.size() / 2];
    }
    matcher.advance(token);
  }
}

Ranges ranges_of(const int32_t* points, int64_t count) {
  Ranges found;
  for (int64_t i = 0; i < count; ++i) found.push_back({uint32_t(points[2 * i]), uint32_t(points[2 * i + 1])});
  return found;
}

}  // namespace
}  // namespace sgl::grammar

using namespace sgl::grammar;

// What is handed out are shares: things are freed in any order, and an automaton lives as long as its matchers.
using VocabularyShare = std::shared_ptr<Vocabulary>;
using AutomatonShare = std::shared_ptr<Automaton>;

extern "C" {

// Tokens as joined bytes that begin [num_tokens + 1] at `begins`; those without text are never allowed. Classes are
// pairs of first and last code points, `counts` of them.
VocabularyShare* sgl_vocabulary_new(const char* bytes, const int64_t* begins, int64_t num_tokens,
                                    const int32_t* const* classes, const int64_t* counts, Usual usual) {
  auto made = std::make_shared<Vocabulary>();
  made->bytes.assign(bytes, bytes + begins[num_tokens]);
  made->begins.assign(begins, begins + num_tokens + 1);
  made->words = num_tokens / 32 + 1;
  made->classes = {ranges_of(classes[0], counts[0]), ranges_of(classes[1], counts[1]), ranges_of(classes[2], counts[2])};
  made->usual = usual;
  made->grow();
  return new VocabularyShare(std::move(made));
}

void sgl_vocabulary_free(VocabularyShare* vocabulary) { delete vocabulary; }

// Null where the grammar cannot be had; `reason` then holds why, as text of at most `room` bytes with its zero.
AutomatonShare* sgl_grammar_new(const VocabularyShare* vocabulary, const char* text, int64_t size, int has_rules,
                                int trial_tokens, char* reason, int64_t room) {
  std::string why;
  try {
    const Vocabulary& tokens = **vocabulary;
    Nfa nfa = read(text, size, has_rules != 0, tokens.classes, tokens.longest);
    auto made = std::make_shared<Automaton>(*vocabulary, std::move(nfa));
    try_out(made, trial_tokens);
    return new AutomatonShare(std::move(made));
  } catch (const Refusal& refusal) {
    why = refusal.reason;
  } catch (const Overworked&) {
    why = "its masks take too long to compute";
  } catch (const std::bad_alloc&) {
    why = "it needs too much memory";
  }
  std::snprintf(reason, size_t(room), "%s", why.c_str());
  return nullptr;
}

void sgl_grammar_free(AutomatonShare* automaton) { delete automaton; }

int64_t sgl_grammar_kept_bytes(AutomatonShare* automaton) {
  std::lock_guard<std::recursive_mutex> lock((*automaton)->mutex);
  return (*automaton)->kept_bytes();
}

// Null where there is no memory.
Matcher* sgl_matcher_new(AutomatonShare* automaton, const int32_t* ends, int64_t num_ends) {
  try {
    return new Matcher(*automaton, ends, num_ends);
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}

void sgl_matcher_free(Matcher* matcher) { delete matcher; }

int sgl_matcher_flags(Matcher* matcher) {
  Budget budget;
  return matcher->act(budget, [] {});
}

int sgl_matcher_accept(Matcher* matcher, int32_t token) {
  Budget budget;
  return matcher->act(budget, [&] {
    if (!matcher->advance(token)) matcher->has_failed = true;
  });
}

// The tokens that come in any case, at most `room` of them; returns how many.
int64_t sgl_matcher_forced(Matcher* matcher, int32_t* tokens, int64_t room) {
  int64_t count = 0;
  Budget budget;
  matcher->act(budget, [&] {
    Automaton& automaton = matcher->automaton;
    for (int32_t set = matcher->set; count < room; ++count) {
      int32_t token = automaton.forced(set);
      if (token < 0) break;
      tokens[count] = token;
      set = automaton.after(set, token);
    }
  });
  return count;
}

// Settles the next tokens of texts, whose likeliest ones are given (-1: drawn at random). `scores` are null, or rows of
// `width` of which text i has number rows[i].
void sgl_matchers_settle(Matcher** matchers, int64_t count, int64_t* tokens, const float* scores, int64_t width,
                         const int64_t* rows, uint8_t* flags) {
  for (int64_t i = 0; i < count; ++i) __builtin_prefetch(matchers[i]);
  for (int64_t i = 0; i < count; ++i) {
    matchers[i]->automaton.fetch(matchers[i]->set);
    if (tokens[i] >= 0) matchers[i]->automaton.vocabulary().fetch(tokens[i]);
  }
  Budget budget;
  for (int64_t i = 0; i < count; ++i) {
    int64_t likeliest = tokens[i];
    tokens[i] = -1;
    flags[i] = matchers[i]->act(budget, [&] {
      tokens[i] = matchers[i]->settle(likeliest, scores ? scores + rows[i] * width : nullptr, width);
    });
  }
}

// Writes masks [count, words]; of a text that failed, only the bit of the end.
void sgl_matchers_fill(Matcher** matchers, int64_t count, uint32_t* masks) {
  Budget budget;
  for (int64_t i = 0; i < count; ++i)
    write(*matchers[i], budget, masks + i * matchers[i]->automaton.vocabulary().words);
}
}
