// Runs grammars: which bytes and which tokens of a vocabulary may follow, found out when they are asked for and kept.
#include "grammar_automaton.h"

#include <cmath>
#include <cstdio>

#include "common.h"

namespace sgl::grammar {

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
static int64_t best_of(const float* scores, const uint32_t* mask, int64_t count, float& best) {
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

// Forbids the scores that a mask of `count` bits does not allow, and all behind them; whether a finite one is left.
static bool limit(float* scores, const uint32_t* mask, int64_t count, int64_t width) {
  const float forbidden = -INFINITY;
  i32x16 own{}, finite{};
  for (int lane = 0; lane < kLanes; ++lane) own[lane] = 1 << lane;
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    int32_t bits = int32_t(mask[i / 32] >> i % 32 & 0xffff);
    f32x16 value = splat(forbidden);
    if (bits) value = select((own & bits) > 0, load(scores + i), value);
    finite = finite | ((value > splat(forbidden)) & (value < splat(INFINITY)));
    store(scores + i, value);
  }
  bool found = sum_lanes(finite) != 0;
  for (; i < width; ++i) {
    if (i >= count || !(mask[i / 32] >> i % 32 & 1)) scores[i] = forbidden;
    found |= std::isfinite(scores[i]);
  }
  return found;
}

// The scores of the ends are the only ones beside those of the mask.
bool Matcher::limit_to_mask(float* scores, int64_t width) {
  std::vector<std::pair<int32_t, float>> kept;
  if (may_end())
    for (int32_t end : ends)
      if (end < width) kept.push_back({end, scores[end]});
  const uint32_t* mask = automaton.mask(set);
  is_drawn = limit(scores, mask, std::min<int64_t>(width, automaton.vocabulary().size()), width);
  for (auto [end, score] : kept) {
    scores[end] = score;
    is_drawn |= std::isfinite(score);
  }
  return is_drawn;
}

// The token that comes next: the likeliest if it may, else the likeliest of those that may. kUnsettled if there is none.
// Of one that is to be drawn at random (the likeliest is negative) the scores are limited to those that may come.
int64_t Matcher::settle(int64_t likeliest, float* scores, int64_t width) {
  int32_t only = automaton.forced(set);
  if (only >= 0) return advance(only), only;
  if (likeliest < 0) return scores && limit_to_mask(scores, width) ? kLimited : kUnsettled;
  if (goes_on_with(int32_t(likeliest))) return likeliest;
  if (!scores) return kUnsettled;
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
static uint8_t write(Matcher& matcher, Budget& budget, uint32_t* mask) {
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
  if (flags & (kFailed | kDeferred)) std::memset(mask, 0, size_t(vocabulary.words) * 4);
  if (flags & kFailed) allow(vocabulary.size());
  return flags;
}

// Every text comes first now and then, when all the work is there; not in step with how often a step calls.
template <typename Action>
static void each(Matcher** matchers, int64_t count, Action action) {
  if (!count) return;
  int64_t first = (matchers[0]->automaton.vocabulary().turn++ * 2654435761u >> 8) % count;
  for (int64_t k = 0; k < count; ++k) action((first + k) % count);
}

// Follows a grammar for a while, always by the token in the middle of those that may come.
static void try_out(const std::shared_ptr<Automaton>& owner, int tokens) {
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

static Ranges ranges_of(const int32_t* points, int64_t count) {
  Ranges found;
  for (int64_t i = 0; i < count; ++i) found.push_back({uint32_t(points[2 * i]), uint32_t(points[2 * i + 1])});
  return found;
}

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

// Settles the next tokens of texts: text i is about tokens[draws[i]], the likeliest (negative: drawn at random), and the
// `width` scores of that number, if there are scores. Returns how many are unsettled or drawn (see Matcher::settle).
int64_t sgl_matchers_settle(Matcher** matchers, int64_t count, const int64_t* draws, int64_t* tokens, float* scores,
                            int64_t width, uint8_t* flags) {
  for (int64_t i = 0; i < count; ++i) __builtin_prefetch(matchers[i]);
  for (int64_t i = 0; i < count; ++i) {
    matchers[i]->automaton.fetch(matchers[i]->set);
    if (tokens[draws[i]] >= 0) matchers[i]->automaton.vocabulary().fetch(tokens[draws[i]]);
  }
  Budget budget;
  int64_t left = 0;
  each(matchers, count, [&](int64_t i) {
    int64_t draw = draws[i], likeliest = tokens[draw];
    tokens[draw] = kUnsettled;
    matchers[i]->is_drawn = false;
    flags[i] = matchers[i]->act(budget, [&] {
      tokens[draw] = matchers[i]->settle(likeliest, scores ? scores + draw * width : nullptr, width);
    });
    left += tokens[draw] < 0;
  });
  return left;
}

// Goes on with the tokens that were drawn from limited scores; nothing happens to other texts.
void sgl_matchers_advance(Matcher** matchers, int64_t count, const int64_t* draws, const int64_t* tokens,
                          uint8_t* flags) {
  for (int64_t i = 0; i < count; ++i) {
    Budget budget;  // its own: what is allowed is known, so this takes next to nothing
    Matcher& matcher = *matchers[i];
    flags[i] = matcher.act(budget, [&] {
      if (matcher.is_drawn && !matcher.goes_on_with(int32_t(tokens[draws[i]]))) matcher.has_failed = true;
    });
    matcher.is_drawn = false;
  }
}

// Writes masks [count, words]; of a text that failed, only the bit of the end; of one that is deferred none.
void sgl_matchers_fill(Matcher** matchers, int64_t count, uint32_t* masks, uint8_t* flags) {
  Budget budget;
  each(matchers, count, [&](int64_t i) {
    flags[i] = write(*matchers[i], budget, masks + i * matchers[i]->automaton.vocabulary().words);
  });
}
}
