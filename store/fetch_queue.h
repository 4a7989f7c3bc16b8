#pragma once

#include "store/digest.h"

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <utility>
#include <vector>

namespace lamina::store {

/// Which parts of lazy layers are to be fetched, and in which order; knows neither network nor clock. One thread at a
/// time.
///
/// A run is a row of neighbouring parts, which one request gets. Parts that readers wait for go before all that is read
/// ahead, and that before the rest of a layer, which is fetched while nothing else is. Wanted neighbours share a run;
/// what is to be read ahead behind them joins it when no other reader waits.
class FetchQueue {
public:
    enum class Kind : std::uint8_t { wanted, ahead, rest };
    static constexpr std::size_t kRunsAtOnce = 4;
    static constexpr std::size_t kAheadAtOnce = 2;           ///< So that a reader finds a connection free.
    static constexpr std::uint64_t kMaxRunBytes = 16 << 20;  ///< Three parts that do not compress.

    struct Run {
        DiffId layer;
        std::size_t first = 0;  ///< Parts first to end - 1.
        std::size_t end = 0;
        Kind kind = Kind::wanted;
        bool operator==(const Run&) const = default;
    };

    bool knows(const DiffId& layer, std::size_t part) const;
    void add_layer(const DiffId& layer, std::vector<std::uint64_t> part_bytes);
    /// What is on its way stays so, and counts until run_done().
    void remove_layer(const DiffId& layer) { layers_.erase(layer); }

    // What follows is for parts that it knows.

    /// Asks for a part. False: it has come already, and unless `again` is not asked for.
    bool ask(const DiffId& layer, std::size_t part, Kind kind, bool again = false);
    /// Nobody asks for it, and it is not on its way.
    bool is_idle(const DiffId& layer, std::size_t part) const;
    /// Takes back what was asked for and is not on its way, but for what readers wait for.
    void take_back(const DiffId& layer);
    /// A reader waits for the part, and will want those before `wanted_end`. When he has read on from where another
    /// ended: how many bytes behind them should come too, up to `limit_bytes` or 2 MiB, more and more as he reads on.
    /// When he jumps: up to `limit_bytes` on both sides of it, the more the more jumps have ended near it lately; none
    /// where there was not more than one.
    struct Followed {
        std::size_t passed_first = 0;  ///< From here to the part: what was read ahead for him, and he has passed.
        std::size_t ahead_end = 0;     ///< From behind the part to here: what is to be read ahead now.
        std::size_t near_first = 0;    ///< And from here to the part.
    };
    Followed follow(const DiffId& layer, std::size_t part, std::size_t wanted_end, std::uint64_t limit_bytes);

    /// What to fetch now; on its way until done() has been called for each of its parts. nullopt: nothing, for now.
    std::optional<Run> next();
    void part_done(const Run& run, std::size_t part, bool has_come);
    void run_done(const Run& run) { --flying_[static_cast<std::size_t>(run.kind)]; }

private:
    enum class State : std::uint8_t { idle, wanted, ahead, rest, flying, here };
    struct Reader {
        std::size_t first = 0;  ///< What was read ahead for him begins here.
        std::size_t next = 0;   ///< The part that he wants when he reads on.
        std::uint64_t window_bytes = 0;
    };
    struct Layer {
        std::vector<std::uint64_t> part_bytes;
        std::vector<State> states;
        std::deque<Reader> readers;     ///< Who has asked last is the last one.
        std::deque<std::size_t> jumps;  ///< Parts that readers have jumped to, each once, the last one last.
    };
    using Parts = std::pair<std::size_t, std::size_t>;  ///< From the first to before the second.
    using Place = std::pair<DiffId, std::size_t>;

    static Parts around(const Layer& layer, std::size_t part, std::uint64_t bytes);
    static std::uint64_t bytes_around(Layer& layer, std::size_t part, std::uint64_t limit_bytes);
    std::optional<Run> take(Kind kind);
    static void widen(Layer& layer, Run& run, State state, std::uint64_t& left_bytes);
    static State state_of(Kind kind) { return static_cast<State>(static_cast<std::uint8_t>(kind) + 1); }
    std::size_t flying() const { return flying_[0] + flying_[1] + flying_[2]; }
    bool has(Kind kind);

    std::map<DiffId, Layer> layers_;
    std::array<std::deque<Place>, 3> asked_;  ///< By kind; entries whose part has another state by now do not count.
    std::array<std::size_t, 3> flying_{};     ///< Runs, by kind.
};

}  // namespace lamina::store
