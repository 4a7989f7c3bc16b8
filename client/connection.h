#pragma once

#include "client/api.h"

#include <boost/json.hpp>

#include <functional>
#include <memory>
#include <string>
#include <string_view>

namespace lamina::client {

/// One HTTP connection to the daemon. Blocking; one thread. Errors are api::FailureError: the daemon's own, or code
/// "connection".
class Connection {
public:
    /// Connects to the daemon of `places`; when none answers and `may_start`, starts one and waits until it serves.
    Connection(const api::Places& places, bool may_start);
    ~Connection();
    Connection(Connection&&) noexcept;

    boost::json::value get(const std::string& target);
    boost::json::value post(std::string_view path, const std::string& body);
    boost::json::value remove(const std::string& target);

    /// A request whose reply is one JSON object a line. Each goes to `on_event`; the object of the last line, the
    /// result, is returned without its wrapper.
    using OnEvent = std::function<void(const boost::json::object& event)>;
    boost::json::value post_stream(std::string_view path, const std::string& body, const OnEvent& on_event);
    void get_stream(const std::string& target, const OnEvent& on_event);

    using OnBytes = std::function<void(std::string_view bytes)>;
    void download(const std::string& target, const OnBytes& on_bytes);

private:
    struct Request;
    class Impl;
    std::unique_ptr<Impl> impl_;
};

/// "path?key=value&..." with values escaped; empty values are left out.
std::string with_query(std::string_view path,
                       std::initializer_list<std::pair<std::string_view, std::string_view>> parameters);

}  // namespace lamina::client
