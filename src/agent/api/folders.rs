//! What is in a folder: for programs that let a user choose one.

use super::Answer;
use hyper::StatusCode;
use serde::{Deserialize, Serialize};
use std::{
    collections::BinaryHeap,
    fs, io,
    path::{Component, Path, PathBuf},
};
use tokio::sync::Semaphore;

/// Most entries that are told; the first by name.
const MAX_ENTRIES: usize = 20_000;
/// Folders that are read at the same time. A file system that hangs holds a thread each, and threads are the process's.
static PLACES: Semaphore = Semaphore::const_new(4);

#[derive(Debug, Deserialize)]
struct Wanted {
    #[serde(default)]
    path: Vec<String>,
    #[serde(default)]
    relativity: String,
}

#[derive(Debug, Serialize, PartialEq, Eq)]
struct Listing {
    absolute_path: Vec<String>,
    absolute_path_string: String,
    contents: Vec<Entry>,
}

#[derive(Debug, Serialize, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    name: String,
    absolute_path_string: String,
    is_dir: bool,
}

/// Answers a request.
pub(super) async fn answer(body: &[u8], home: &Path) -> Answer {
    let wanted: Wanted = match serde_json::from_slice(body) {
        Ok(wanted) => wanted,
        Err(error) => return Answer::error(StatusCode::BAD_REQUEST, format!("the body names no folder: {error}")),
    };
    let base = match wanted.relativity.as_str() {
        "root" => Path::new("/"),
        "home" => home,
        other => {
            let message = format!("there is no relativity {other:?}: it is \"root\" or \"home\"");
            return Answer::error(StatusCode::INTERNAL_SERVER_ERROR, message);
        }
    };
    let folder = join(base, &wanted.path);
    let shown = folder.display().to_string();
    // Nobody closes it.
    let place = PLACES.acquire().await;
    let listing = move || {
        // Until the folder is read, not until nobody waits for it.
        let _place = place;
        list(&folder, MAX_ENTRIES)
    };
    let listed = tokio::task::spawn_blocking(listing).await.unwrap_or_else(|e| Err(io::Error::other(e)));
    match listed {
        Ok(listing) => Answer::json(StatusCode::OK, &listing),
        Err(error) => {
            let status = match error.kind() {
                io::ErrorKind::NotFound => StatusCode::NOT_FOUND,
                io::ErrorKind::PermissionDenied => StatusCode::FORBIDDEN,
                _ => StatusCode::INTERNAL_SERVER_ERROR,
            };
            Answer::error(status, format!("cannot list the folder {shown:?}: {error}"))
        }
    }
}

/// A path without `.` and `..`, which are taken as words: a link is not followed for them.
fn join(base: &Path, words: &[String]) -> PathBuf {
    let mut out = base.to_owned();
    for word in words {
        for component in Path::new(word).components() {
            match component {
                Component::Normal(name) => out.push(name),
                Component::ParentDir => drop(out.pop()),
                Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
            }
        }
    }
    out
}

/// The first `most` entries by name. No more of them are kept than that, however many there are.
fn list(folder: &Path, most: usize) -> io::Result<Listing> {
    let mut contents = BinaryHeap::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        contents.push(Entry {
            name: entry.file_name().to_string_lossy().into_owned(),
            absolute_path_string: entry.path().to_string_lossy().into_owned(),
            is_dir: entry.file_type().is_ok_and(|kind| kind.is_dir()),
        });
        if contents.len() > most {
            contents.pop();
        }
    }
    let names = folder.components().filter(|c| matches!(c, Component::Normal(_)));
    Ok(Listing {
        absolute_path: names.map(|c| c.as_os_str().to_string_lossy().into_owned()).collect(),
        absolute_path_string: folder.to_string_lossy().into_owned(),
        contents: contents.into_sorted_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    async fn ask(body: &Value, home: &Path) -> (u16, Value) {
        let answer = answer(body.to_string().as_bytes(), home).await;
        (answer.status.as_u16(), serde_json::from_str(&answer.body).unwrap())
    }

    #[tokio::test]
    async fn a_folder_is_listed_by_name_with_its_whole_path() {
        let home = tempfile::tempdir().unwrap();
        fs::create_dir(home.path().join("sub")).unwrap();
        fs::write(home.path().join(".rc"), "").unwrap();
        let (status, listing) = ask(&json!({ "path": [], "relativity": "home" }), home.path()).await;
        let at = |name: &str| home.path().join(name).to_str().unwrap().to_owned();
        assert_eq!(status, 200);
        assert_eq!(
            listing["contents"],
            json!([
                { "name": ".rc", "absolute_path_string": at(".rc"), "is_dir": false },
                { "name": "sub", "absolute_path_string": at("sub"), "is_dir": true },
            ])
        );
        assert_eq!(listing["absolute_path_string"], home.path().to_str().unwrap());
        let words: Vec<_> = home.path().to_str().unwrap().split('/').skip(1).collect();
        assert_eq!(listing["absolute_path"], json!(words));
        let deeper = json!({ "path": ["sub", "..", "sub/./"], "relativity": "home" });
        assert_eq!(ask(&deeper, home.path()).await.1["absolute_path_string"], at("sub"));
        assert_eq!(ask(&json!({ "path": ["..", ".."], "relativity": "root" }), home.path()).await.1["absolute_path"], json!([]));
    }

    #[test]
    fn of_too_many_entries_the_first_by_name_are_told() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["d", "b", "e", "a", "c"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        let names = |most| list(folder.path(), most).unwrap().contents.into_iter().map(|e| e.name).collect::<Vec<_>>();
        assert_eq!((names(2), names(5)), (vec!["a".into(), "b".into()], ["a", "b", "c", "d", "e"].map(String::from).to_vec()));
    }

    #[tokio::test]
    async fn a_folder_waits_while_all_places_are_taken() {
        let home = tempfile::tempdir().unwrap();
        let body = json!({ "path": [], "relativity": "home" });
        let taken = PLACES.acquire_many(4).await.unwrap();
        let mut waiting = std::pin::pin!(ask(&body, home.path()));
        assert!(futures::poll!(&mut waiting).is_pending());
        drop(taken);
        assert_eq!(waiting.await.0, 200);
    }

    #[tokio::test]
    async fn what_is_no_folder_is_told_by_its_status() {
        let home = tempfile::tempdir().unwrap();
        fs::write(home.path().join("file"), "").unwrap();
        for (body, status) in [
            (json!({ "path": ["no", "such"], "relativity": "home" }), 404),
            (json!({ "path": ["file"], "relativity": "home" }), 500),
            (json!({ "path": [], "relativity": "x" }), 500),
            (json!({ "path": "x" }), 400),
            (json!(7), 400),
        ] {
            let (got, answer) = ask(&body, home.path()).await;
            assert_eq!(got, status, "{body}: {answer}");
            assert!(answer["message"].is_string());
        }
    }
}
