//! What is in a folder: for programs that let a user choose one.

use super::Answer;
use hyper::StatusCode;
use serde::{Deserialize, Serialize};
use std::{
    fs, io,
    path::{Component, Path, PathBuf},
};

/// Most entries that are told; the first by name.
const MAX_ENTRIES: usize = 20_000;

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
    let listed = tokio::task::spawn_blocking(move || list(&folder)).await.unwrap_or_else(|e| Err(io::Error::other(e)));
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

fn list(folder: &Path) -> io::Result<Listing> {
    let mut contents = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        contents.push(Entry {
            name: entry.file_name().to_string_lossy().into_owned(),
            absolute_path_string: entry.path().to_string_lossy().into_owned(),
            is_dir: entry.file_type().is_ok_and(|kind| kind.is_dir()),
        });
    }
    contents.sort_unstable();
    contents.truncate(MAX_ENTRIES);
    let names = folder.components().filter(|c| matches!(c, Component::Normal(_)));
    Ok(Listing {
        absolute_path: names.map(|c| c.as_os_str().to_string_lossy().into_owned()).collect(),
        absolute_path_string: folder.to_string_lossy().into_owned(),
        contents,
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
