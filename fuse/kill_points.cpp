#include "fuse/kill_points.h"

#include "fuse/arena.h"
#include "fuse/transport.h"
#include "fuse/upper_calls.h"
#include "store/file_ops.h"

#include <signal.h>
#include <sys/random.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <string_view>

namespace lamina::unionfs {
namespace {

/// How long until the process ends itself at a point: drawn at its start, so that one that lives long meets it.
struct Point {
    std::string_view name;
    std::uint64_t one_in = 0;  ///< 0: never.
};
enum Place : std::size_t { kArena = 4, kUpper, kFile };  ///< Behind those of KillPoint.
std::array<Point, 7> points{Point{"received"}, Point{"accepted"}, Point{"before_reply"}, Point{"after_reply"},
                            Point{"arena"},    Point{"upper"},    Point{"file"}};

std::uint64_t draw() {
    static thread_local std::uint64_t state = [] {
        std::uint64_t seed = 0;
        if (::getrandom(&seed, sizeof seed, 0) < 0) seed = static_cast<std::uint64_t>(::getpid());
        return seed | 1;
    }();
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

void maybe_die(const Point& point) {
    if (point.one_in != 0 && draw() % point.one_in == 0) ::kill(::getpid(), SIGKILL);
}

/// A request with this text in it crashes the server.
std::string_view poison;

void die_of_poison() {
    const auto body = Transport::current().body;
    const std::string_view text(reinterpret_cast<const char*>(body.data()), body.size());
    constexpr int kExitSoftware = 70;
    if (!poison.empty() && text.find(poison) != text.npos) ::_exit(kExitSoftware);
}

class FilePoint : public store::FaultHook {
public:
    void before(std::string_view, std::string_view) override { maybe_die(points[kFile]); }
};

}  // namespace

void read_kill_points_from_environment() {
    const char* const text = std::getenv("LAMINA_KILL_POINTS");
    const char* const left_out = std::getenv("LAMINA_WITHOUT");
    const std::string_view without = left_out == nullptr ? "" : left_out;
    g_left_out = {.seals = without == "seals", .undo = without == "undo", .locks = without == "locks"};
    const char* const poison_text = std::getenv("LAMINA_POISON");
    if (poison_text != nullptr) poison = poison_text;
    for (std::string_view rest = text == nullptr ? "" : text; !rest.empty();) {
        const std::size_t end = rest.find(',');
        const std::string_view one = rest.substr(0, end);
        const std::size_t colon = one.find(':');
        for (Point& point : points)
            if (colon != one.npos && one.substr(0, colon) == point.name)
                point.one_in = std::strtoull(one.data() + colon + 1, nullptr, 10);
        rest = end == rest.npos ? std::string_view() : rest.substr(end + 1);
    }
}

void arm_kill_points() {
    const bool has_point = std::ranges::any_of(points, [](const Point& point) { return point.one_in != 0; });
    if (!has_point && poison.empty()) return;
    g_kill_point = [](KillPoint point) {
        if (point == KillPoint::accepted) die_of_poison();
        maybe_die(points[static_cast<std::size_t>(point)]);
    };
    if (points[kArena].one_in != 0) g_arena_step = [] { maybe_die(points[kArena]); };
    if (points[kUpper].one_in != 0) g_upper_step = [] { maybe_die(points[kUpper]); };
    static FilePoint file_point;
    if (points[kFile].one_in != 0) store::g_fault_hook.store(&file_point, std::memory_order_release);
}

}  // namespace lamina::unionfs
