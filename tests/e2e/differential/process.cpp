#include "e2e/differential/process.h"

#include "e2e/differential/calls.h"

#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <grp.h>

#include <array>
#include <cerrno>
#include <stdexcept>

namespace lamina::test::differential {
namespace {

constexpr int kPatienceMs = 120'000;
constexpr std::size_t kAnswerBytes = 64 << 10;

bool enter(const std::string& folder, std::uint32_t uid) {
    constexpr gid_t kOtherGroup = 2000;
    if (::chroot(folder.c_str()) != 0 || ::chdir("/") != 0) return false;
    if (uid == 0) return true;
    return ::setgroups(1, &kOtherGroup) == 0 && ::setresgid(uid, uid, uid) == 0 && ::setresuid(uid, uid, uid) == 0;
}

[[noreturn]] void serve(int channel, const Program& program, const std::string& folder, std::uint32_t uid) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    ::signal(SIGPIPE, SIG_IGN);
    ::umask(022);
    if (!enter(folder, uid)) ::_exit(1);
    {
        Actor actor(program);
        std::size_t index = 0;
        while (::recv(channel, &index, sizeof index, 0) == sizeof index) {
            std::string answer = actor.run(index);
            answer.resize(std::min(answer.size(), kAnswerBytes));
            if (answer.empty()) answer = "nothing";  // Zero bytes would be the end.
            if (::send(channel, answer.data(), answer.size(), 0) < 0) break;
        }
    }
    ::_exit(0);
}

}  // namespace

ActorProcess::ActorProcess(const Program& program, const std::string& folder, std::uint32_t uid) {
    std::array<int, 2> ends{};
    if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends.data()) != 0)
        throw std::runtime_error("no socket pair");
    channel_ = store::UniqueFd(ends[0]);
    const store::UniqueFd other(ends[1]);
    child_ = ::fork();
    if (child_ == 0) {
        channel_ = {};
        serve(other.get(), program, folder, uid);
    }
    if (child_ < 0) throw std::runtime_error("cannot fork");
}

ActorProcess::~ActorProcess() {
    channel_ = {};
    if (child_ <= 0) return;
    ::kill(child_, SIGKILL);
    ::waitpid(child_, nullptr, 0);
}

void ActorProcess::begin(std::size_t call_index) {
    if (::send(channel_.get(), &call_index, sizeof call_index, MSG_NOSIGNAL) < 0) channel_ = {};
}

std::string ActorProcess::answer() {
    pollfd waiting{.fd = channel_.get(), .events = POLLIN, .revents = 0};
    std::string room(kAnswerBytes, '\0');
    ssize_t got = 0;
    if (channel_ && ::poll(&waiting, 1, kPatienceMs) == 1) got = ::recv(channel_.get(), room.data(), room.size(), 0);
    if (got <= 0) {
        channel_ = {};  // What it answers later answers nothing that is asked then.
        return std::string(kNoAnswer);
    }
    room.resize(static_cast<std::size_t>(got));
    return room;
}

}  // namespace lamina::test::differential
