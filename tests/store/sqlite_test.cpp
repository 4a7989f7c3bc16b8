#include "store/sqlite.h"

#include "store/error.h"
#include "store/file.h"
#include "support/catch.h"
#include "support/temp_dir.h"

#include <sys/stat.h>

using namespace lamina;
using store::Errc;

namespace {

template <class Function>
Errc code_of(Function&& function) {
    try {
        function();
    } catch (const store::Error& error) {
        return error.code();
    }
    FAIL("no error");
    return Errc::internal;
}

}  // namespace

TEST_CASE("what was bound comes back, and a statement runs again with other parameters", "[store][sqlite]") {
    const test::TempDir folder;
    store::Database database = store::Database::open(folder / "db");
    database.execute("CREATE TABLE t (a INTEGER, b TEXT, c BLOB) STRICT");
    store::Statement insert(database, "INSERT INTO t VALUES (?, ?, ?)");
    const store::Digest digest = store::Digest::of(store::as_bytes("x"));
    insert.execute(-5, std::string("text\0with nul", 13), store::DiffId{digest});
    insert.execute(7u, "", std::vector<std::byte>{});
    store::Statement select(database, "SELECT a, b, c FROM t ORDER BY rowid");
    for (int round = 0; round < 2; ++round) {
        store::Rows rows = select.run();
        REQUIRE(rows.next());
        CHECK(rows.integer(0) == -5);
        CHECK(rows.text(1) == std::string("text\0with nul", 13));
        CHECK(rows.digest(2) == digest);
        CHECK(code_of([&] { static_cast<void>(rows.count(0)); }) == Errc::corrupt);
        REQUIRE(rows.next());
        CHECK(rows.count(0) == 7);
        CHECK(rows.text(1).empty());
        CHECK(rows.bytes(2).empty());
        CHECK(code_of([&] { static_cast<void>(rows.digest(2)); }) == Errc::corrupt);
        if (round == 1) CHECK(!rows.next());
    }
}

TEST_CASE("a database with any bit turned is corrupt to whoever reads that page", "[store][sqlite][bad]") {
    const test::TempDir folder("/dev/shm");
    const std::string path = folder / "db";
    {
        store::Database database = store::Database::open(path);
        database.execute("CREATE TABLE t (a INTEGER, b BLOB) STRICT; INSERT INTO t VALUES (1, zeroblob(9000));");
    }
    const auto good = store::read_file(path, 1 << 20);
    REQUIRE(good.size() >= 4 * 4096);
    const auto read_all = [&] {  // SQLite's check tells of a page that it did not get, and goes on.
        store::Database database = store::Database::open(path);
        store::Statement check(database, "PRAGMA integrity_check");
        store::Rows rows = check.run();
        if (!rows.next() || rows.text(0) != "ok") throw store::Error(Errc::corrupt, "integrity_check");
        return true;
    };
    REQUIRE(read_all());
    const auto check_flip = [&](std::size_t at) {
        CAPTURE(at);
        auto bad = good;
        bad[at] ^= std::byte{1} << (at % 8);
        if (at == 20) bad[at] = std::byte{0};  // As in a database whose pages have no checksums.
        store::write_file_atomically(path, bad);
        CHECK(code_of([&] { static_cast<void>(read_all()); }) == Errc::corrupt);
    };
    check_flip(20);
    for (std::size_t at = 100; at < good.size(); at += 397) check_flip(at);
    store::write_file_atomically(path, good);
    CHECK(read_all());
}

TEST_CASE("a transaction that does not commit leaves nothing", "[store][sqlite]") {
    const test::TempDir folder;
    store::Database database = store::Database::open(folder / "db");
    database.execute("CREATE TABLE t (a INTEGER) STRICT");
    {
        store::Transaction transaction(database);
        database.execute("INSERT INTO t VALUES (1)");
    }
    store::Statement count(database, "SELECT count(*) FROM t");
    {
        store::Rows rows = count.run();
        REQUIRE(rows.next());
        CHECK(rows.integer(0) == 0);
    }
    store::Transaction transaction(database);
    database.execute("INSERT INTO t VALUES (1)");
    transaction.commit();
    store::Rows rows = count.run();
    REQUIRE(rows.next());
    CHECK(rows.integer(0) == 1);
}

TEST_CASE("a database is closed to others and keeps no shared-memory file", "[store][sqlite]") {
    const test::TempDir folder;
    store::Database database = store::Database::open(folder / "db");
    database.execute("CREATE TABLE t (a INTEGER) STRICT");
    struct stat st {};
    REQUIRE(::stat((folder / "db").c_str(), &st) == 0);
    CHECK((st.st_mode & 0777) == 0600);
    CHECK(!store::exists(folder / "db-shm"));
    CHECK(store::exists(folder / "db-wal"));
}

TEST_CASE("a second connection is told that the database is busy", "[store][sqlite]") {
    const test::TempDir folder;
    store::Database database = store::Database::open(folder / "db");
    database.execute("CREATE TABLE t (a INTEGER) STRICT");
    CHECK(code_of([&] { store::Database::open(folder / "db").execute("CREATE TABLE u (a)"); }) == Errc::busy);
}

TEST_CASE("a full database is no_space, and works again when there is space", "[store][sqlite]") {
    const test::TempDir folder;
    store::Database database = store::Database::open(folder / "db");
    database.execute("CREATE TABLE t (a BLOB) STRICT; PRAGMA max_page_count=10");
    store::Statement insert(database, "INSERT INTO t VALUES (zeroblob(?))");
    CHECK(code_of([&] {
              store::Transaction transaction(database);
              insert.execute(1 << 20);
              transaction.commit();
          }) == Errc::no_space);
    database.execute("PRAGMA max_page_count=1000");
    store::Transaction transaction(database);
    insert.execute(1 << 20);
    transaction.commit();
}

TEST_CASE("bytes that are no database are corrupt, and a folder in its place is an error", "[store][sqlite]") {
    const test::TempDir folder;
    store::write_file_atomically(folder / "db", store::as_bytes(std::string(8192, 'x')));
    CHECK(code_of([&] { store::Database::open(folder / "db"); }) == Errc::corrupt);
    store::make_folder(folder / "folder");
    CHECK(code_of([&] { store::Database::open(folder / "folder"); }) == Errc::unavailable);
}

TEST_CASE("foreign keys are checked and the schema cannot be written", "[store][sqlite]") {
    const test::TempDir folder;
    store::Database database = store::Database::open(folder / "db");
    database.execute("CREATE TABLE a (x INTEGER PRIMARY KEY); CREATE TABLE b (x INTEGER REFERENCES a(x))");
    CHECK(code_of([&] { database.execute("INSERT INTO b VALUES (1)"); }) == Errc::internal);
    CHECK(code_of([&] { database.execute("PRAGMA writable_schema=ON; DELETE FROM sqlite_schema"); }) == Errc::internal);
}
