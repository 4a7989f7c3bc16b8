#include "store/fetch_queue.h"

#include <algorithm>

namespace lamina::store {

namespace {

constexpr std::uint64_t kFirstWindowBytes = 256 << 10;
constexpr std::uint64_t kFairWindowBytes = 2 << 20;  // Who gets so far has read as much.
constexpr std::size_t kReadersOfLayer = 8;
constexpr std::size_t kJumpsOfLayer = 8;
constexpr std::uint64_t kNearBytes = 4 << 20;

}  // namespace

bool FetchQueue::knows(const DiffId& layer, std::size_t part) const {
    const auto found = layers_.find(layer);
    return found != layers_.end() && part < found->second.states.size();
}

void FetchQueue::add_layer(const DiffId& layer, std::vector<std::uint64_t> part_bytes) {
    Layer added;
    added.states.assign(part_bytes.size(), State::idle);
    added.part_bytes = std::move(part_bytes);
    layers_.emplace(layer, std::move(added));
}

bool FetchQueue::ask(const DiffId& layer, std::size_t part, Kind kind, bool again) {
    State& state = layers_.at(layer).states.at(part);
    if (state == State::here && !again) return false;
    const State asked = state_of(kind);
    const bool is_more = state == State::idle || state == State::here || (state != State::flying && asked < state);
    if (!is_more) return true;
    state = asked;
    asked_[static_cast<std::size_t>(kind)].emplace_back(layer, part);
    return true;
}

void FetchQueue::take_back(const DiffId& layer) {
    for (State& state : layers_.at(layer).states) {
        if (state == State::rest) state = State::idle;
    }
}

bool FetchQueue::is_idle(const DiffId& layer, std::size_t part) const {
    return !knows(layer, part) || layers_.at(layer).states[part] == State::idle;
}

FetchQueue::Followed FetchQueue::follow(const DiffId& layer, std::size_t part, std::size_t wanted_end,
                                        std::uint64_t limit_bytes) {
    Layer& of = layers_.at(layer);
    const auto found = std::ranges::find_if(
        of.readers, [&](const Reader& reader) { return reader.first <= part + 1 && part <= reader.next; });
    Reader reader{.first = part + 1, .next = wanted_end, .window_bytes = 0};
    Followed followed{.passed_first = part, .ahead_end = part + 1, .near_first = part};
    if (found != of.readers.end() && wanted_end <= found->next) return followed;  // On its way, or not stored yet.
    if (found == of.readers.end()) {
        const Parts near = around(of, part, bytes_around(of, part, limit_bytes));
        followed.near_first = near.first;
        reader.next = std::max(wanted_end, near.second);
    } else {
        const std::uint64_t most_bytes = std::max(limit_bytes, kFairWindowBytes);
        reader.window_bytes = std::clamp(found->window_bytes * 2, kFirstWindowBytes, most_bytes);
        reader.next = std::max(wanted_end, found->next);
        std::uint64_t bytes = 0;
        const auto fits = [&] { return bytes == 0 || bytes + of.part_bytes[reader.next] <= reader.window_bytes; };
        while (reader.next < of.states.size() && fits()) bytes += of.part_bytes[reader.next++];
        followed.passed_first = std::min(found->first, part);
        of.readers.erase(found);
    }
    of.readers.push_back(reader);
    if (of.readers.size() > kReadersOfLayer) of.readers.pop_front();
    followed.ahead_end = reader.next;
    return followed;
}

/// Of a part that somebody has foreseen nothing is learnt.
std::uint64_t FetchQueue::bytes_around(Layer& layer, std::size_t part, std::uint64_t limit_bytes) {
    if (layer.states[part] != State::idle) return 0;
    const Parts near = around(layer, part, kNearBytes);
    const auto jumps = static_cast<std::uint64_t>(
        std::ranges::count_if(layer.jumps, [&](std::size_t jump) { return jump >= near.first && jump < near.second; }));
    if (std::ranges::find(layer.jumps, part) == layer.jumps.end()) layer.jumps.push_back(part);
    if (layer.jumps.size() > kJumpsOfLayer) layer.jumps.pop_front();
    return jumps < 2 ? 0 : std::min((jumps - 1) * kFirstWindowBytes, limit_bytes);
}

FetchQueue::Parts FetchQueue::around(const Layer& layer, std::size_t part, std::uint64_t bytes) {
    Parts parts{part, part + 1};
    for (std::uint64_t left = bytes; parts.first > 0 && layer.part_bytes[parts.first - 1] <= left;) {
        left -= layer.part_bytes[--parts.first];
    }
    for (std::uint64_t left = bytes;
         parts.second < layer.part_bytes.size() && layer.part_bytes[parts.second] <= left;) {
        left -= layer.part_bytes[parts.second++];
    }
    return parts;
}

bool FetchQueue::has(Kind kind) {
    auto& asked = asked_[static_cast<std::size_t>(kind)];
    while (!asked.empty()) {
        const auto& [layer, part] = asked.front();
        if (knows(layer, part) && layers_.at(layer).states[part] == state_of(kind)) return true;
        asked.pop_front();
    }
    return false;
}

std::optional<FetchQueue::Run> FetchQueue::next() {
    const auto flying_of = [&](Kind kind) { return flying_[static_cast<std::size_t>(kind)]; };
    if (flying() >= kRunsAtOnce) return std::nullopt;
    if (has(Kind::wanted)) return take(Kind::wanted);
    if (has(Kind::ahead)) return flying_of(Kind::ahead) < kAheadAtOnce ? take(Kind::ahead) : std::nullopt;
    if (has(Kind::rest) && flying() == 0) return take(Kind::rest);
    return std::nullopt;
}

void FetchQueue::widen(Layer& layer, Run& run, State state, std::uint64_t& left_bytes) {
    const auto is_joined = [&](std::size_t part) {
        return layer.states[part] == state && layer.part_bytes[part] <= left_bytes;
    };
    while (run.end < layer.states.size() && is_joined(run.end)) {
        left_bytes -= layer.part_bytes[run.end];
        layer.states[run.end++] = State::flying;
    }
    while (run.first > 0 && is_joined(run.first - 1)) {
        left_bytes -= layer.part_bytes[--run.first];
        layer.states[run.first] = State::flying;
    }
}

std::optional<FetchQueue::Run> FetchQueue::take(Kind kind) {
    auto& asked = asked_[static_cast<std::size_t>(kind)];
    const Place place = asked.front();
    asked.pop_front();
    Layer& layer = layers_.at(place.first);
    Run run{.layer = place.first, .first = place.second, .end = place.second + 1, .kind = kind};
    layer.states[run.first] = State::flying;
    std::uint64_t left_bytes = kMaxRunBytes - std::min(kMaxRunBytes, layer.part_bytes[run.first]);
    widen(layer, run, state_of(kind), left_bytes);
    const bool is_alone = kind == Kind::wanted && !has(Kind::wanted);
    while (is_alone && run.end < layer.states.size() && layer.states[run.end] == State::ahead &&
           layer.part_bytes[run.end] <= left_bytes) {
        left_bytes -= layer.part_bytes[run.end];
        layer.states[run.end++] = State::flying;
    }
    ++flying_[static_cast<std::size_t>(kind)];
    return run;
}

void FetchQueue::part_done(const Run& run, std::size_t part, bool has_come) {
    if (knows(run.layer, part)) layers_.at(run.layer).states[part] = has_come ? State::here : State::idle;
}

}  // namespace lamina::store
