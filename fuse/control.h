#pragma once

#include "store/file.h"

#include <functional>
#include <map>
#include <memory>
#include <string>

namespace lamina::unionfs {

/// One connection to a mount's control socket, as the handler sees it. What it holds is given back when it closes.
class ControlSession {
public:
    virtual ~ControlSession() = default;
    using Members = std::map<std::string, std::string>;
    /// Answers a question, as a JSON object without newline. May block; may throw store::Error.
    virtual std::string answer(const std::string& ask, const Members& members) = 0;
};

/// The control socket of a mount, <mount folder>/control, mode 0600: one JSON object a line in, one out.
///
///   {"ask":"stats"}   counters, sizes, who reads         {"ask":"sync"}   all that was changed is durable
///   {"ask":"upgrade","program":PATH}   a server of that program goes on; the connection may end without an answer
///   {"ask":"cut"}     a state to diff or commit, held until the connection closes
///   {"ask":"stop"}    sync, unmount, exit; "force":true also when files are open
///   {"ask":"reads"}   of a lazy image: "chunks", which were read, the first 16 hex digits of each, in order, and how
///                     many of them at the "start", in the first minute; else not "known"
///   {"ask":"quota"}   limits and what the changes take; "limit":"BYTES:INODES" sets new ones first
///
/// Each answer has "ok"; with "ok":false there are "error" and "code". Answers root and the mount's owner only. A
/// connection has a thread of its own, so that a slow question holds up nobody; at most kConnectionLimit at once.
class ControlSocket {
public:
    static constexpr std::size_t kConnectionLimit = 16;
    static constexpr std::size_t kLineLimitBytes = 4096;

    using MakeSession = std::function<std::unique_ptr<ControlSession>()>;
    /// Binds in `folder`, over what a dead server left there. Throws store::Error.
    ControlSocket(const std::string& folder, MakeSession make_session);
    /// Goes on with the bound socket of a server that has died; who connected meanwhile has waited.
    ControlSocket(const std::string& folder, store::UniqueFd listener, MakeSession make_session);
    int fd() const noexcept;  ///< Of the bound socket.
    /// Lets answers in progress be sent, then closes all connections and removes the socket.
    ~ControlSocket();
    ControlSocket(const ControlSocket&) = delete;
    ControlSocket& operator=(const ControlSocket&) = delete;

private:
    class Impl;
    std::unique_ptr<Impl> impl_;
};

/// A connection to the server of a mount. What the server holds for it (a cut) lasts as long as it does.
class ControlClient {
public:
    explicit ControlClient(const std::string& folder);  ///< unavailable: nobody listens.
    /// The answer is the line without newline. unavailable: the server went away over it.
    std::string ask(const std::string& line);
    /// The server that was connected to still lives, and holds what it held.
    bool is_alive() const noexcept;

private:
    store::UniqueFd fd_;
};

/// One question that may be asked twice, for the command line and tests: when a server dies over it, the next one is
/// asked. unavailable: nobody listens.
std::string ask_control(const std::string& folder, const std::string& line);

}  // namespace lamina::unionfs
