#include "fuse/kill_points.h"

#include "fuse/arena.h"
#include "fuse/upper_calls.h"
#include "store/file_ops.h"

#include <signal.h>
#include <sys/random.h>
#include <unistd.h>

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
std::array<Point, 6> points{Point{"received"}, Point{"before_reply"}, Point{"after_reply"},
                            Point{"arena"},    Point{"upper"},        Point{"file"}};

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

class FilePoint : public store::FaultHook {
public:
    void before(std::string_view, std::string_view) override { maybe_die(points[5]); }
};

}  // namespace

void install_kill_points_from_environment() {
    const char* const text = std::getenv("LAMINA_KILL_POINTS");
    if (text == nullptr) return;
    for (std::string_view rest = text; !rest.empty();) {
        const std::size_t end = rest.find(',');
        const std::string_view one = rest.substr(0, end);
        const std::size_t colon = one.find(':');
        for (Point& point : points)
            if (colon != one.npos && one.substr(0, colon) == point.name)
                point.one_in = std::strtoull(one.data() + colon + 1, nullptr, 10);
        rest = end == rest.npos ? std::string_view() : rest.substr(end + 1);
    }
    g_kill_point = [](KillPoint point) { maybe_die(points[static_cast<std::size_t>(point)]); };
    if (points[3].one_in != 0) g_arena_step = [] { maybe_die(points[3]); };
    if (points[4].one_in != 0) g_upper_step = [] { maybe_die(points[4]); };
    static FilePoint file_point;
    if (points[5].one_in != 0) store::g_fault_hook.store(&file_point, std::memory_order_release);
}

}  // namespace lamina::unionfs
