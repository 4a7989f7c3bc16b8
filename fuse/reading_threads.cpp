// `turn_` says who reads. Only the two threads change it: the quiet one gives its turn up (several clients, busy
// cores), with the request that it has just taken; the plain one takes it (late, idle) or gives it away (one client,
// many requests).
//
// Quiet: SCHED_IDLE makes a core that runs only this thread count as idle, so the scheduler leaves the client there
// when our reply wakes it, and affinity to the client's core puts us there when its request wakes us. Both cost an idle
// thread dearly as soon as anything else wants the core, so the plain thread looks each millisecond: no progress since
// the last look while a request is pending or in hand means taking over. It then reads on while the quiet thread still
// holds its one request; where permitted it gives it normal policy until that is answered.
//
// A thread cannot leave SCHED_IDLE without privilege, and on a busy machine the end of a server would wait for one that
// gets no core. So the quiet thread ends with its turn, and each turn has a new one: 50 us, at most every 50 ms.
//
// Both may be inside read(2) after a switch. A starved reader must not be the one whom the kernel wakes for the next
// request: a signal makes it runnable, and the kernel passes it over for those that sleep.
#include "fuse/reading_threads.h"

#include "store/file.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <climits>
#include <thread>

namespace lamina::unionfs {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr unsigned kLookUpCpuEvery = 16;   // Requests.
constexpr unsigned kLookUpLoadEvery = 64;  // Requests; reading /proc/loadavg costs about one request's time.
constexpr milliseconds kTick{1};
constexpr int kIdleTicks = 50;
constexpr int kLateTicks = 2;
constexpr unsigned kBusyLooks = 4;
constexpr milliseconds kBurstWindow{50};  // A window of requests from one client within this is a burst.
constexpr milliseconds kFirstHoldOff{50};
constexpr milliseconds kLongestHoldOff{2000};

int kick_signal() {
    return SIGRTMIN;
}

void wait_while(const std::atomic<int>& value, int is, milliseconds limit) {
    const timespec longest{.tv_sec = 0, .tv_nsec = std::chrono::nanoseconds(limit).count()};
    ::syscall(SYS_futex, &value, FUTEX_WAIT_PRIVATE, is, &longest, nullptr, 0);
}

void wake_all(const std::atomic<int>& value) {
    ::syscall(SYS_futex, &value, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
}

pid_t own_task() {
    return static_cast<pid_t>(::syscall(SYS_gettid));
}

bool set_policy(pid_t task, int policy) {
    const sched_param none{};
    return ::sched_setscheduler(task, policy, &none) == 0;
}

std::string_view read_proc(int fd, std::span<char> room) {
    const ssize_t got = ::pread(fd, room.data(), room.size(), 0);
    return {room.data(), got > 0 ? static_cast<std::size_t>(got) : 0};
}

/// The client's CPU; keeps /proc/PID/stat of the last one open.
class FollowedClient {
public:
    int cpu(std::uint32_t process) {
        if (process != process_) {
            const std::string path = fmt::format("/proc/{}/stat", process);
            fd_ = store::UniqueFd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
            process_ = process;
        }
        if (!fd_) return -1;
        std::array<char, 1024> room{};
        return cpu_from_stat(read_proc(fd_.get(), room));
    }
    bool is_other(std::uint32_t process) const { return process != process_; }

private:
    std::uint32_t process_ = 0;
    store::UniqueFd fd_;
};

class MachineLoad {
public:
    MachineLoad() : fd_(::open("/proc/loadavg", O_RDONLY | O_CLOEXEC)) {}
    /// More tasks want to run than there are cores, ourselves included.
    bool is_busy() const {
        std::array<char, 128> room{};
        return fd_ && running_from_loadavg(read_proc(fd_.get(), room)) > cores_;
    }
    /// Was so at several looks in a row: one look often meets a kernel thread that is gone at once.
    bool stays_busy() {
        busy_looks_ = is_busy() ? busy_looks_ + 1 : 0;
        return busy_looks_ >= kBusyLooks;
    }
    void reset() { busy_looks_ = 0; }

private:
    unsigned busy_looks_ = 0;
    store::UniqueFd fd_;
    unsigned cores_ = std::max(1U, std::thread::hardware_concurrency());
};

}  // namespace

ClientWatch::Verdict ClientWatch::saw(std::uint32_t process) {
    if (process == 0) return Verdict::unknown;
    ++seen_;
    if (process != last_) {
        if (process == before_last_) ++switchbacks_;
        before_last_ = last_;
        last_ = process;
    }
    if (seen_ < kWindow) return Verdict::unknown;
    const auto verdict = switchbacks_ >= kSwitchbacks ? Verdict::several : Verdict::one;
    seen_ = switchbacks_ = 0;
    return verdict;
}

int cpu_from_stat(std::string_view stat_line) {
    constexpr int kProcessorField = 39;
    const std::size_t name_end = stat_line.rfind(')');  // The name may hold anything.
    if (name_end == std::string_view::npos) return -1;
    std::size_t at = name_end + 1;
    for (int field = 3; field <= kProcessorField; ++field) {
        at = stat_line.find_first_not_of(' ', at);
        if (at == std::string_view::npos) return -1;
        if (field == kProcessorField) break;
        at = stat_line.find(' ', at);
        if (at == std::string_view::npos) return -1;
    }
    int cpu = -1;
    const auto parsed = std::from_chars(stat_line.data() + at, stat_line.data() + stat_line.size(), cpu);
    return parsed.ec == std::errc() && cpu >= 0 ? cpu : -1;
}

unsigned running_from_loadavg(std::string_view loadavg) {
    std::size_t at = 0;
    for (int field = 0; field < 3; ++field) {
        at = loadavg.find(' ', at);
        if (at == std::string_view::npos) return 0;
        ++at;
    }
    unsigned running = 0;
    const auto parsed = std::from_chars(loadavg.data() + at, loadavg.data() + loadavg.size(), running);
    return parsed.ec == std::errc() ? running : 0;
}

class ReadingThreads::Impl {
public:
    Impl(Transport& transport, QuietReader quiet)
        : transport_(transport), is_eager_(quiet == QuietReader::eagerly), may_be_quiet_(quiet != QuietReader::never) {
        if (may_be_quiet_) quiet_inbox_ = transport_.make_inbox();
    }

    void start() {
        struct sigaction kick {};
        kick.sa_handler = [](int) {};  // Only to end a read(2).
        ::sigaction(kick_signal(), &kick, nullptr);
        ::sched_getaffinity(0, sizeof all_cpus_, &all_cpus_);
        plain_ = std::jthread([this] { run_plain(); });
    }
    void join() {
        if (plain_.joinable()) plain_.join();
        if (quiet_.joinable()) quiet_.join();
    }
    void stop() {
        end();
        // A signal that comes just before read(2) is lost, so it is repeated until both have left.
        while (left_count_.load() < started_count_.load()) {
            if (plain_task_ != 0) kick(plain_task_);
            if (quiet_task_ != 0) kick(quiet_task_);
            std::this_thread::sleep_for(kTick);
        }
    }
    Stats stats() const {
        return {.is_quiet = turn_ == kQuiet,
                .may_be_quiet = may_be_quiet_,
                .to_quiet = to_quiet_,
                .to_plain_idle = to_plain_idle_,
                .to_plain_clients = to_plain_clients_,
                .to_plain_busy = to_plain_busy_,
                .to_plain_late = to_plain_late_,
                .moves = moves_};
    }

private:
    static constexpr int kPlain = 0;
    static constexpr int kQuiet = 1;
    static constexpr int kEnded = 2;  ///< Final.
    using Counter = std::atomic<std::uint64_t>;

    /// Counts a thread from its start to its end.
    class Presence {
    public:
        Presence(Impl& impl, std::atomic<pid_t>& task) : impl_(impl), task_(task) {
            task_ = own_task();
            ++impl_.started_count_;
        }
        ~Presence() {
            task_ = 0;
            ++impl_.left_count_;
        }
        Presence(const Presence&) = delete;
        Presence& operator=(const Presence&) = delete;

    private:
        Impl& impl_;
        std::atomic<pid_t>& task_;
    };

    void kick(pid_t task) { ::syscall(SYS_tgkill, ::getpid(), task, kick_signal()); }
    /// False when the turn was not `from`'s: taken back meanwhile, or the end.
    bool pass_turn(int from, int to) {
        if (!turn_.compare_exchange_strong(from, to)) return false;
        wake_all(turn_);
        return true;
    }
    void end() {
        turn_ = kEnded;
        wake_all(turn_);
        lift_policy();
    }
    /// Of the quiet thread: of any use only with privilege, and where its core is busy.
    void lift_policy() {
        const pid_t task = quiet_task_;
        if (task == 0) return;
        ::sched_setaffinity(task, sizeof all_cpus_, &all_cpus_);
        set_policy(task, SCHED_OTHER);
    }
    void handle(Inbox& inbox) {
        ++progress_;  // Odd: a request is in hand.
        transport_.process(inbox);
        ++progress_;
    }

    void run_quiet();
    bool enter_quiet_policy();
    bool hands_turn_over(ClientWatch& watch);
    bool leave_quiet_turn(Counter& why);
    bool follow(std::uint32_t process);
    void watch_quiet();
    void take_from_quiet(Counter& why);
    void run_plain();
    void answer_handed();
    void consider_quiet(std::uint32_t process);
    void start_quiet();
    void hold_off() { quiet_allowed_at_ = Clock::now() + kFirstHoldOff; }

    Transport& transport_;
    const bool is_eager_;
    std::atomic<bool> may_be_quiet_;
    cpu_set_t all_cpus_{};
    std::atomic<int> turn_{kPlain};
    std::atomic<std::uint64_t> progress_{0};
    std::atomic<pid_t> quiet_task_{0};
    std::atomic<pid_t> plain_task_{0};
    std::atomic<int> started_count_{0};
    std::atomic<int> left_count_{0};
    std::atomic<bool> quiet_is_there_{false};  ///< From before its start to its end.
    Counter to_quiet_{0}, to_plain_idle_{0}, to_plain_clients_{0}, to_plain_busy_{0}, to_plain_late_{0}, moves_{0};

    /// The request in `quiet_inbox_` is whose takes this.
    std::atomic<bool> is_handed_{false};
    Inbox quiet_inbox_;

    // Of the quiet thread.
    FollowedClient client_;
    MachineLoad quiet_load_;
    int own_cpu_ = -1;
    unsigned until_cpu_ = 0;
    unsigned until_load_ = 0;

    // Of the plain thread.
    ClientWatch plain_watch_;
    MachineLoad plain_load_;
    Clock::time_point window_began_ = Clock::now();
    std::atomic<Clock::time_point> quiet_allowed_at_{Clock::now()};
    milliseconds hold_off_ = kFirstHoldOff;
    Clock::time_point quiet_since_{};

    std::jthread quiet_;
    std::jthread plain_;
};

bool ReadingThreads::Impl::enter_quiet_policy() {
    own_cpu_ = -1;
    until_cpu_ = 0;
    until_load_ = kLookUpLoadEvery;
    quiet_load_.reset();
    return set_policy(0, SCHED_IDLE);
}

/// With the request in the inbox. False: the plain thread has taken the turn already, and the request stays here.
bool ReadingThreads::Impl::leave_quiet_turn(Counter& why) {
    hold_off();
    is_handed_ = true;
    if (pass_turn(kQuiet, kPlain)) {
        ++why;
        return true;
    }
    return !is_handed_.exchange(false);
}

/// True when the client's core may not be used: the turn was handed over.
bool ReadingThreads::Impl::follow(std::uint32_t process) {
    if (!client_.is_other(process) && until_cpu_-- > 0) return false;
    until_cpu_ = kLookUpCpuEvery;
    const int cpu = client_.cpu(process);
    if (cpu < 0 || cpu == own_cpu_ || cpu >= CPU_SETSIZE) return false;
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    if (::sched_setaffinity(0, sizeof one, &one) != 0) {  // The client may run where we must not.
        if (errno == EPERM) may_be_quiet_ = false;
        return leave_quiet_turn(to_plain_busy_);
    }
    own_cpu_ = cpu;
    ++moves_;
    return false;
}

/// Looks at the request in the inbox. True: it is the plain thread's, and so is the turn.
bool ReadingThreads::Impl::hands_turn_over(ClientWatch& watch) {
    const std::uint32_t process = quiet_inbox_.header().pid;
    if (watch.saw(process) == ClientWatch::Verdict::several && !is_eager_) return leave_quiet_turn(to_plain_clients_);
    if (--until_load_ == 0) {
        until_load_ = kLookUpLoadEvery;
        if (!is_eager_ && quiet_load_.stays_busy()) return leave_quiet_turn(to_plain_busy_);
    }
    return process != 0 && follow(process);
}

void ReadingThreads::Impl::run_quiet() {
    const Presence presence(*this, quiet_task_);
    if (!enter_quiet_policy()) {
        may_be_quiet_ = false;
        pass_turn(kQuiet, kPlain);
        return;
    }
    ClientWatch watch;
    while (turn_ == kQuiet) {
        const auto received = transport_.receive(quiet_inbox_);
        if (received == Transport::Received::ended) return end();
        if (received == Transport::Received::interrupted) continue;
        if (turn_ == kQuiet && hands_turn_over(watch)) return;
        handle(quiet_inbox_);
    }
}

void ReadingThreads::Impl::take_from_quiet(Counter& why) {
    if (!pass_turn(kQuiet, kPlain)) return;  // It sees that when it has finished what it holds.
    ++why;
    lift_policy();
    if (const pid_t task = quiet_task_; task != 0) kick(task);
}

// One look each millisecond while the quiet thread reads.
void ReadingThreads::Impl::watch_quiet() {
    std::uint64_t seen = progress_;
    int still_ticks = 0;
    int late_ticks = 0;
    while (turn_ == kQuiet) {
        wait_while(turn_, kQuiet, kTick);
        const std::uint64_t progress = progress_;
        if (progress != seen) {
            seen = progress;
            still_ticks = late_ticks = 0;
            continue;
        }
        const bool is_in_hand = progress % 2 == 1;
        if (!is_in_hand && !transport_.has_waiting_request()) {
            late_ticks = 0;
            if (++still_ticks >= kIdleTicks) take_from_quiet(to_plain_idle_);
            continue;
        }
        if (progress_ != seen || ++late_ticks < kLateTicks) continue;
        // Often late in a row: longer and longer away. After a good while of quiet it was an accident.
        hold_off_ =
            Clock::now() - quiet_since_ > kLongestHoldOff ? kFirstHoldOff : std::min(hold_off_ * 2, kLongestHoldOff);
        quiet_allowed_at_ = Clock::now() + hold_off_;
        take_from_quiet(to_plain_late_);
    }
    plain_watch_.reset();
    window_began_ = Clock::now();
}

void ReadingThreads::Impl::consider_quiet(std::uint32_t process) {
    const auto verdict = plain_watch_.saw(process);
    if (verdict == ClientWatch::Verdict::unknown) return;
    const auto now = Clock::now();
    const bool is_burst = now - window_began_ < kBurstWindow;
    window_began_ = now;
    if (!transport_.is_settled()) return;
    const bool may_now = verdict == ClientWatch::Verdict::one && is_burst && now >= quiet_allowed_at_.load();
    if (!may_now && !is_eager_) return;
    if (!is_eager_ && plain_load_.is_busy()) return;
    quiet_since_ = now;
    start_quiet();
}

void ReadingThreads::Impl::start_quiet() {
    if (quiet_is_there_) return;  // The last one has not left yet.
    quiet_ = {};
    if (!pass_turn(kPlain, kQuiet)) return;
    quiet_is_there_ = true;
    try {
        quiet_ = std::jthread([this] {
            run_quiet();
            quiet_is_there_ = false;
        });
        ++to_quiet_;
    } catch (const std::system_error&) {
        quiet_is_there_ = false;
        pass_turn(kQuiet, kPlain);
    }
}

void ReadingThreads::Impl::answer_handed() {
    if (is_handed_.exchange(false)) transport_.process(quiet_inbox_);
}

void ReadingThreads::Impl::run_plain() {
    const Presence presence(*this, plain_task_);
    Inbox inbox = transport_.make_inbox();
    while (turn_ != kEnded) {
        if (turn_ == kQuiet) {
            watch_quiet();
            answer_handed();
            continue;
        }
        const auto received = transport_.receive(inbox);
        if (received == Transport::Received::ended) break;
        if (received == Transport::Received::interrupted) continue;
        const std::uint32_t process = inbox.header().pid;
        transport_.process(inbox);
        if (may_be_quiet_ && process != 0) consider_quiet(process);
    }
    answer_handed();
    end();
}

ReadingThreads::ReadingThreads(Transport& transport, QuietReader quiet)
    : impl_(std::make_unique<Impl>(transport, quiet)) {}
ReadingThreads::~ReadingThreads() = default;
void ReadingThreads::start() {
    impl_->start();
}
void ReadingThreads::join() {
    impl_->join();
}
void ReadingThreads::stop() {
    impl_->stop();
}
ReadingThreads::Stats ReadingThreads::stats() const {
    return impl_->stats();
}

}  // namespace lamina::unionfs
