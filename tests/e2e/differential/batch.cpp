// Both sides make a call before either makes the next, so that what their clocks say can be compared: which times a
// call moved, not to what.
#include "e2e/differential/batch.h"

#include "e2e/differential/lower.h"
#include "e2e/differential/process.h"
#include "e2e/differential/snapshot.h"
#include "store/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <memory>
#include <set>

namespace lamina::test::differential {
namespace {

constexpr unsigned kActors = 2;
constexpr std::chrono::seconds kShrinkTime{60};

struct statx_timestamp ctime_of(const std::string& path) {
    struct statx attributes {};
    ::statx(AT_FDCWD, path.c_str(), 0, STATX_CTIME, &attributes);
    return attributes.stx_ctime;
}

/// Waits until the local file system gives a new time: what is changed from now on has another than what was before.
/// Returns whether each change that is looked at gets a time of its own, as kernels from 6.13 on have it.
bool wait_for_tick(const std::string& folder) {
    const std::string probe = folder + "/probe";
    ::close(::open(probe.c_str(), O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
    const auto first = ctime_of(probe);
    bool is_fine = true;
    for (;; is_fine = false) {
        ::chmod(probe.c_str(), 0600);
        const auto next = ctime_of(probe);
        if (next.tv_nsec != first.tv_nsec || next.tv_sec != first.tv_sec) break;
    }
    ::unlink(probe.c_str());
    return is_fine;
}

class Run {
public:
    struct Folders {
        std::string reference;
        std::string ours;
    };
    Run(const Program& program, Folders folders, const Trace& trace)
        : program_(program), folders_(std::move(folders)), trace_(trace) {}

    struct Abilities {
        bool watching = true;      ///< Of the reference: each change that is looked at gets a time of its own.
        bool change_times = true;  ///< Of ours.
    };
    std::string run(Abilities has) {
        Moment moment = look(true);
        beginning_ = beginning_of(moment.reference, moment.ours);
        beginning_.has_change_times = has.change_times;
        beginning_.has_holes = has.change_times || std::ranges::none_of(program_.calls, [](const Call& call) {
                                   return call.words.at(0) == "fallocate";
                               });
        if (const auto found = difference(moment.reference, moment.ours, beginning_); !found.empty())
            return "before the first call: " + found;
        for (unsigned actor = 0; actor < kActors; ++actor) {
            const std::uint32_t uid = actor == 0 ? 0 : program_.other_uid;
            reference_[actor] = std::make_unique<ActorProcess>(program_, folders_.reference, uid);
            ours_[actor] = std::make_unique<ActorProcess>(program_, folders_.ours, uid);
        }
        for (std::size_t at = 0; at < program_.calls.size(); ++at) {
            const Call& call = program_.calls[at];
            const std::string where = "call " + std::to_string(at) + " (" + to_text(call) + ")";
            const auto [there, here] = make_call(at);
            if (trace_) trace_(call, there, here);
            if (there != here || there == kNoAnswer) return where + ": " + there + " there, " + here + " here";
            if (!program_.is_watched || !has.watching) continue;
            Moment next = look(false);
            if (const auto found = change_difference(moment, next, beginning_); !found.empty())
                return where + ": " + found;
            moment = std::move(next);
        }
        live_ = look(true);
        if (const auto found = difference(live_.reference, live_.ours, beginning_); !found.empty())
            return "in the end: " + found;
        for (auto* const all : {&reference_, &ours_})
            for (auto& actor : *all) actor.reset();
        return {};
    }
    std::string check_remounted() const {
        const auto found = remount_difference(live_.ours, take_snapshot(folders_.ours, true), beginning_);
        return found.empty() ? found : "after a remount (there: before it): " + found;
    }
    std::string check_other_view(const std::string& folder) const {
        const auto found = other_difference(live_.reference, take_snapshot(folder, true), beginning_);
        return found.empty() ? found : "in the other view: " + found;
    }

private:
    Moment look(bool has_content) const {
        return {.reference = take_snapshot(folders_.reference, has_content),
                .ours = take_snapshot(folders_.ours, has_content)};
    }
    std::pair<std::string, std::string> make_call(std::size_t at) {
        const unsigned actor = program_.calls[at].actor;
        reference_[actor]->begin(at);
        std::string there = reference_[actor]->answer();
        ours_[actor]->begin(at);
        return {std::move(there), ours_[actor]->answer()};
    }

    const Program& program_;
    const Folders folders_;
    const Trace& trace_;
    Beginning beginning_;
    Moment live_;
    std::array<std::unique_ptr<ActorProcess>, kActors> reference_;
    std::array<std::unique_ptr<ActorProcess>, kActors> ours_;
};

/// Without entry `at`, what lies in it and what is linked to it.
std::vector<LowerEntry> without(const std::vector<LowerEntry>& lower, std::size_t at) {
    std::vector<LowerEntry> rest;
    std::set<std::string> paths = {"."};
    for (std::size_t i = 0; i < lower.size(); ++i) {
        const std::string& path = lower[i].path;
        const std::size_t slash = path.rfind('/');
        const bool has_parent = slash == std::string::npos || paths.contains(path.substr(0, slash));
        if (i == at || !has_parent || (lower[i].type == 'h' && !paths.contains(lower[i].target))) continue;
        paths.insert(path);
        rest.push_back(lower[i]);
    }
    return rest;
}

}  // namespace

std::vector<std::string> run_batch(const std::vector<Program>& programs, const std::string& reference,
                                   const SideMaker& make_side, const Trace& trace) {
    std::vector<std::string> found(programs.size());
    for (std::size_t i = 0; i < programs.size(); ++i)
        write_folder(programs[i].lower, reference + "/" + program_folder(i));
    const auto side = make_side(programs);
    const bool can_watch = wait_for_tick(reference);
    std::vector<std::unique_ptr<Run>> runs;
    for (std::size_t i = 0; i < programs.size(); ++i) {
        const std::string name = "/" + program_folder(i);
        runs.push_back(
            std::make_unique<Run>(programs[i], Run::Folders{reference + name, side->folder() + name}, trace));
        found[i] = runs.back()->run({.watching = can_watch, .change_times = side->has_change_times()});
        if (!found[i].empty()) runs.back().reset();  // Its processes end, so that the mount can.
    }
    side->remount();
    for (std::size_t i = 0; i < programs.size(); ++i)
        if (runs[i]) found[i] = runs[i]->check_remounted();
    if (const std::string other = side->other_view(); !other.empty())
        for (std::size_t i = 0; i < programs.size(); ++i)
            if (runs[i] && found[i].empty()) found[i] = runs[i]->check_other_view(other + "/" + program_folder(i));
    return found;
}

Shrunk shrink(Program program, const std::function<std::string(const Program&)>& run) {
    const auto until = std::chrono::steady_clock::now() + kShrinkTime;
    Shrunk best{.program = program, .difference = run(program), .fails = false};
    best.fails = !best.difference.empty();
    if (!best.fails) return best;
    const auto take = [&](Program smaller) {
        if (std::chrono::steady_clock::now() > until) return false;
        std::string difference = run(smaller);
        if (difference.empty()) return false;
        best.program = std::move(smaller);
        best.difference = std::move(difference);
        return true;
    };
    for (std::size_t step = std::max<std::size_t>(1, best.program.calls.size() / 2);; step /= 2) {
        for (std::size_t at = best.program.calls.size(); at > 0;) {
            const std::size_t begin = at > step ? at - step : 0;
            Program smaller = best.program;
            smaller.calls.erase(smaller.calls.begin() + static_cast<std::ptrdiff_t>(begin),
                                smaller.calls.begin() + static_cast<std::ptrdiff_t>(at));
            take(std::move(smaller));
            at = begin;
        }
        if (step <= 1) break;
    }
    for (std::size_t at = best.program.lower.size(); at > 1; --at) {
        if (at > best.program.lower.size()) continue;
        Program smaller = best.program;
        smaller.lower = without(smaller.lower, at - 1);
        take(std::move(smaller));
    }
    return best;
}

}  // namespace lamina::test::differential
