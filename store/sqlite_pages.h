#pragma once

#include <cstdint>

struct sqlite3;

namespace lamina::store {

/// A way to files for SQLite that puts a checksum behind each page of a database as it is written, and compares it
/// when the page is read (FORMAT.md, "Index"): SQLite itself believes what it reads. A page that is not what was
/// written is SQLITE_IOERR_DATA. The write-ahead log has checksums of its own.
///
/// Takes the place of the default one, and is registered with the first call: the name for sqlite3_open_v2(). A
/// database is used by one process and without mappings. Thread-safe as SQLite's own.
const char* checked_pages();

/// To be called on a connection before a new database is written to: its pages then have room for checksums. Those of a
/// database that has none are left as they are, and not checked.
void reserve_page_checksums(sqlite3* database);

}  // namespace lamina::store
