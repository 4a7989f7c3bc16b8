#include "fuse/control.h"

#include "fuse/json_text.h"
#include "store/error.h"
#include "store/file.h"
#include "support/catch.h"
#include "support/temp_dir.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <atomic>
#include <thread>

using namespace lamina;
using namespace lamina::unionfs;

namespace {

/// Answers with what was asked; counts the sessions that are open.
class EchoSession : public ControlSession {
public:
    explicit EchoSession(std::atomic<int>& open) : open_(open) { ++open_; }
    ~EchoSession() override { --open_; }
    std::string answer(const std::string& ask, const Members& members) override {
        if (ask == "fail") throw store::Error(store::Errc::no_space, "no \"room\"");
        JsonObject answer;
        answer.flag("ok", true).text("asked", ask).number("members", members.size());
        return answer.str();
    }

private:
    std::atomic<int>& open_;
};

struct Echo {
    explicit Echo(const std::string& folder)
        : socket(std::make_unique<ControlSocket>(folder, [this] { return std::make_unique<EchoSession>(open); })) {}
    std::atomic<int> open{0};
    std::unique_ptr<ControlSocket> socket;
};

store::UniqueFd connect_to(const std::string& folder) {
    store::UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_un name{};
    name.sun_family = AF_UNIX;
    (folder + "/control").copy(name.sun_path, sizeof name.sun_path - 1);
    REQUIRE(::connect(fd.get(), reinterpret_cast<sockaddr*>(&name), sizeof name) == 0);
    return fd;
}

std::string talk(int fd, const std::string& text) {
    REQUIRE(::send(fd, text.data(), text.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(text.size()));
    std::string answer;
    char byte = 0;
    while (::recv(fd, &byte, 1, 0) == 1 && byte != '\n') answer += byte;
    return answer;
}

}  // namespace

TEST_CASE("a control socket answers each line with a line", "[control]") {
    const test::TempDir folder;
    Echo echo(folder.path());
    CHECK(ask_control(folder.path(), R"({"ask":"stats"})") == R"({"ok":true,"asked":"stats","members":1})");
    const auto fd = connect_to(folder.path());
    CHECK(talk(fd.get(), "{\"ask\":\"a\"}\n") == R"({"ok":true,"asked":"a","members":1})");
    CHECK(talk(fd.get(), " { \"ask\" : \"b\" , \"force\" : true }\n") == R"({"ok":true,"asked":"b","members":2})");
}

TEST_CASE("an error of a question is its answer, as JSON", "[control]") {
    const test::TempDir folder;
    Echo echo(folder.path());
    CHECK(ask_control(folder.path(), R"({"ask":"fail"})") == R"({"ok":false,"code":"no_space","error":"no \"room\""})");
}

TEST_CASE("a line that is no question is refused and the connection goes on", "[control]") {
    const test::TempDir folder;
    Echo echo(folder.path());
    const auto fd = connect_to(folder.path());
    for (const char* const line :
         {"", "{", "{}", "[]", "null", "{\"ask\":1}", "{\"ask\":\"a\"}x", "{\"ask\":\"a\",}", "{\"ask\":\"a\\u0041\"}",
          "{\"ask\":{\"a\":\"b\"}}", "\xff\xfe", "{\"no\":\"ask\"}"}) {
        CAPTURE(line);
        CHECK(talk(fd.get(), std::string(line) + "\n").starts_with(R"({"ok":false,"code":"malformed")"));
    }
    CHECK(talk(fd.get(), "{\"ask\":\"a\"}\n").starts_with(R"({"ok":true)"));
}

TEST_CASE("a line without end is cut off", "[control]") {
    const test::TempDir folder;
    Echo echo(folder.path());
    const auto fd = connect_to(folder.path());
    CHECK(talk(fd.get(), std::string(ControlSocket::kLineLimitBytes + 1, 'x')).find("too long") != std::string::npos);
    char byte = 0;
    CHECK(::recv(fd.get(), &byte, 1, 0) == 0);
}

TEST_CASE("a silent connection holds up nobody, and too many are turned away", "[control]") {
    const test::TempDir folder;
    Echo echo(folder.path());
    std::vector<store::UniqueFd> silent;
    for (std::size_t i = 1; i < ControlSocket::kConnectionLimit; ++i) {
        silent.push_back(connect_to(folder.path()));
        CHECK(talk(silent.back().get(), "{\"ask\":\"a\"}\n").starts_with(R"({"ok":true)"));
    }
    silent.push_back(connect_to(folder.path()));
    CHECK(talk(silent.back().get(), "{\"ask\":\"last\"}\n").starts_with(R"({"ok":true)"));
    CHECK(ask_control(folder.path(), R"({"ask":"one more"})").find("too many") != std::string::npos);
    CHECK(echo.open == static_cast<int>(ControlSocket::kConnectionLimit));
}

TEST_CASE("what a connection holds is given back when it closes, or the socket does", "[control]") {
    const test::TempDir folder;
    Echo echo(folder.path());
    {
        const auto fd = connect_to(folder.path());
        talk(fd.get(), "{\"ask\":\"a\"}\n");
        CHECK(echo.open == 1);
    }
    while (echo.open != 0) std::this_thread::yield();
    const auto fd = connect_to(folder.path());
    talk(fd.get(), "{\"ask\":\"a\"}\n");
    echo.socket.reset();
    CHECK(echo.open == 0);
    CHECK_FALSE(store::exists(folder / "control"));
}

TEST_CASE("a control socket works below a path that is too long for its address", "[control]") {
    const test::TempDir folder;
    const std::string deep = folder / std::string(120, 'd');
    store::make_folder(deep);
    Echo echo(deep);
    CHECK(ask_control(deep, R"({"ask":"deep"})").starts_with(R"({"ok":true)"));
}

TEST_CASE("a control socket is its owner's, and replaces what a dead server left", "[control]") {
    const test::TempDir folder;
    store::write_file_atomically(folder / "control", {});
    Echo echo(folder.path());
    struct stat attributes {};
    REQUIRE(::stat((folder / "control").c_str(), &attributes) == 0);
    CHECK((attributes.st_mode & 07777) == 0600);
}

TEST_CASE("asking where nobody listens says so", "[control]") {
    const test::TempDir folder;
    try {
        ask_control(folder.path(), "{}");
        FAIL("was answered");
    } catch (const store::Error& error) {
        CHECK(error.code() == store::Errc::unavailable);
        CHECK(std::string(error.what()).find("no server runs here") != std::string::npos);
    }
}

TEST_CASE("JSON text stays JSON whatever bytes are in it", "[json_text]") {
    const auto quoted = [](std::string_view text) { return JsonObject().text("k", text).str(); };
    CHECK(quoted("plain") == R"({"k":"plain"})");
    CHECK(quoted("\"\\\n\x01") == R"({"k":"\"\\\u000a\u0001"})");
    CHECK(quoted("\xc3\xa4") == "{\"k\":\"\xc3\xa4\"}");
    CHECK(quoted("\xc3") == R"({"k":"\u00c3"})");
    CHECK(quoted("\xed\xa0\x80") == R"({"k":"\u00ed\u00a0\u0080"})");
    CHECK(quoted("\xf5\x80\x80\x80") == R"({"k":"\u00f5\u0080\u0080\u0080"})");
    CHECK(quoted("\xc0\xaf") == R"({"k":"\u00c0\u00af"})");
}

TEST_CASE("a flat object is read strictly", "[json_text]") {
    CHECK(parse_flat_json("{}")->empty());
    CHECK(parse_flat_json(R"({"a":"b","c":true})")->at("c") == "true");
    CHECK(parse_flat_json(R"({"a":"\"\\\/"})")->at("a") == "\"\\/");
    CHECK_FALSE(parse_flat_json(R"({"a":"b","a":"c"})"));
    CHECK_FALSE(parse_flat_json(R"({"a":"b)"));
    CHECK_FALSE(parse_flat_json(R"({"a":nonsense})"));
    std::string many = "{";
    for (int i = 0; i < 17; ++i) many += (i == 0 ? "\"" : ",\"") + std::to_string(i) + "\":\"x\"";
    CHECK_FALSE(parse_flat_json(many + "}"));
    const std::string whole = R"({"ask":"stop","force":true})";
    for (std::size_t size = 0; size < whole.size(); ++size) CHECK_FALSE(parse_flat_json(whole.substr(0, size)));
}
