// What is known of a grammar, and the texts that are on their way through it; see grammar_automaton.cpp.
#pragma once

#include <algorithm>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <unordered_map>
#include <unordered_set>

#include "grammar_vocabulary.h"

namespace sgl::grammar {

constexpr int32_t kUnknown = -1, kNone = -2;
constexpr int64_t kUnsettled = -1, kLimited = -2;  // in place of a token
// Steps of the search for what follows, of 3 to 28 ns. All texts of a call have kMaxWork in common, beside kOwnWork of
// each. Where that runs out a text is asked about again in a later call, unless it had all of the work for itself: then
// it fails. Only what is found out costs work, and what was found before work ran out is kept. What may follow never
// depends on it, only when there is an answer.
constexpr int64_t kMaxWork = 1 << 19, kOwnWork = 1 << 12;
constexpr int64_t kUsualWork = 256;       // of a question to the tokenizer
constexpr int64_t kNodesAStep = 16;       // of the tree of tokens
constexpr int64_t kMaxKept = 16 << 20;    // bytes that a grammar keeps of what it has found out, from call to call
constexpr size_t kMaxForced = 256;        // bytes of forced text that are looked at together
constexpr uint8_t kOver = 1, kForced = 2, kFailed = 4, kDeferred = 8;

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

inline uint64_t mixed(uint64_t a, uint64_t b) {
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

  // Begins with a text: what follows must not need more work than there is, of which it may have all or what others
  // left. Forgets everything if there is too much.
  void open(Budget& budget) {
    had_all_ = budget.left >= kMaxWork;
    budget.left = std::max(budget.left, kOwnWork);
    budget_ = &budget;
    if (found_bytes() > max_found_) forget();
  }

  bool had_all() const { return had_all_; }

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
  bool had_all_ = true;       // of the work when it began
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
  int32_t set;            // of no meaning once it has failed
  bool has_failed;
  bool is_drawn = false;  // from scores that were limited to what may come

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

  // As `advance`; an end that may come changes nothing.
  bool goes_on_with(int32_t token) { return advance(token) || (may_end() && is_end(token)); }

  uint8_t flags() {
    if (has_failed) return kFailed;
    const Automaton::Set& own = automaton.set(set);
    if (own.may_end && !own.has_next) return kOver;
    try {
      return automaton.forced(set) >= 0 ? kForced : 0;
    } catch (const Overworked&) {
      return 0;  // not known yet: whoever needs it asks again
    }
  }

  // Does something to the text, all of it or nothing; if it takes too much work or memory, the text cannot be followed
  // any further.
  template <typename Action>
  uint8_t act(Budget& budget, Action action) {
    std::lock_guard<std::recursive_mutex> lock(automaton.mutex);
    try {
      automaton.open(budget);
      if (!has_failed) action();
      return flags();
    } catch (const Overworked&) {
      if (!automaton.had_all()) return kDeferred;
    } catch (const std::bad_alloc&) {
    }
    has_failed = true;
    return kFailed;
  }

  int64_t settle(int64_t likeliest, float* scores, int64_t width);
  bool limit_to_mask(float* scores, int64_t width);
};

}  // namespace sgl::grammar
