//! Paths and operations of a resource, written once and rendered for version 2 or 3.

use super::parameters::{
    DELETE, DRY_RUN, EXEC, FIELD_MANAGER, FIELD_VALIDATION, FORCE, LIST, LOG, NAME, NAMESPACE, PATH, PORTS,
    PRETTY, PROXY_PATH, Parameter,
};
use super::{camel, capitalised, definitions, definitions::Definitions, tag};
use crate::resource::{ApiResource, GroupVersionKind, Subresource, Verb};
use serde_json::{Map, Value, json};

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.";
const PRODUCED: [&str; 3] = ["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];
const STREAMED: [&str; 2] =
    ["application/json;stream=watch", "application/vnd.kubernetes.protobuf;stream=watch"];
const PATCHES: [&str; 4] = [
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
];

/// What an operation answers with.
enum Answer {
    Definition(String),
    Text,
}

struct Operation {
    method: &'static str,
    id: String,
    /// `x-kubernetes-action`; discovery has none.
    action: Option<&'static str>,
    description: String,
    kind: Option<GroupVersionKind>,
    parameters: Vec<Parameter>,
    /// The definition of the body, and whether there must be one.
    body: Option<(String, bool)>,
    answer: Answer,
    codes: &'static [(&'static str, &'static str)],
    watched: bool,
    tag: String,
    custom: bool,
}

pub(super) struct Path {
    pub(super) url: String,
    parameters: Vec<Parameter>,
    operations: Vec<Operation>,
}

const READ: &[(&str, &str)] = &[("200", "OK"), ("401", "Unauthorized")];
const CREATED: &[(&str, &str)] =
    &[("200", "OK"), ("201", "Created"), ("202", "Accepted"), ("401", "Unauthorized")];
const REPLACED: &[(&str, &str)] = &[("200", "OK"), ("201", "Created"), ("401", "Unauthorized")];
const DELETED: &[(&str, &str)] = &[("200", "OK"), ("202", "Accepted"), ("401", "Unauthorized")];

/// Kinds whose deletion answers with the object instead of a status.
fn answers_with_object(resource: &ApiResource) -> bool {
    match &*resource.group {
        "" => matches!(
            &*resource.plural,
            "persistentvolumeclaims"
                | "persistentvolumes"
                | "pods"
                | "podtemplates"
                | "resourcequotas"
                | "serviceaccounts"
                | "services"
        ),
        "resource.k8s.io" => true,
        "storage.k8s.io" => resource.plural != "csistoragecapacities",
        _ => false,
    }
}

/// The discovery document of a group and version.
pub(super) fn discovery(group: &str, version: &str) -> Path {
    Path {
        url: format!("/{}/", super::group_version_path(group, version)),
        parameters: Vec::new(),
        operations: vec![Operation {
            method: "get",
            id: format!("get{}APIResources", camel(group, version)),
            action: None,
            description: "get available resources".to_owned(),
            kind: None,
            parameters: Vec::new(),
            body: None,
            answer: Answer::Definition(format!("{META}APIResourceList")),
            codes: READ,
            watched: false,
            tag: tag(group, version),
            custom: false,
        }],
    }
}

/// All paths of a resource with its subresources.
pub(super) fn paths(resource: &ApiResource, custom: bool) -> Vec<Path> {
    Builder { resource, custom }.paths()
}

struct Builder<'a> {
    resource: &'a ApiResource,
    custom: bool,
}

impl Builder<'_> {
    fn paths(&self) -> Vec<Path> {
        let resource = self.resource;
        let root = format!("/{}", super::group_version_path(&resource.group, &resource.version));
        let (scope, scope_parameters) =
            if resource.namespaced { ("/namespaces/{namespace}", vec![NAMESPACE]) } else { ("", vec![]) };
        let collection = format!("{root}{scope}/{}", resource.plural);
        let item = format!("{collection}/{{name}}");
        let with = |first: &[Parameter]| [first, &scope_parameters, &[PRETTY]].concat();
        let mut paths = vec![
            Path { url: collection, parameters: with(&[]), operations: self.collection() },
            Path { url: item.clone(), parameters: with(&[NAME]), operations: self.item() },
        ];
        if resource.namespaced && resource.verbs.contains(&Verb::List) {
            let list = self.list("ForAllNamespaces");
            paths.push(Path {
                url: format!("{root}/{}", resource.plural),
                parameters: vec![PRETTY],
                operations: vec![list],
            });
        }
        for subresource in &*resource.subresources {
            let url = format!("{item}/{}", subresource.name);
            let own = self.subresource_parameters(subresource);
            let operations = self.subresource(subresource, "");
            if subresource.name == "proxy" {
                paths.push(Path {
                    url: format!("{url}/{{path}}"),
                    parameters: [with(&[NAME]), vec![PATH]].concat(),
                    operations: self.subresource(subresource, "WithPath"),
                });
            }
            paths.push(Path { url, parameters: [with(&[NAME]), own].concat(), operations });
        }
        paths.retain(|path| !path.operations.is_empty());
        paths
    }

    fn definition(&self, suffix: &str) -> Answer {
        let resource = self.resource;
        if self.custom {
            return Answer::Definition(definitions::custom_definition(resource, suffix));
        }
        let kind = GroupVersionKind { kind: format!("{}{suffix}", resource.kind).into(), ..resource.gvk() };
        Answer::Definition(builtin_definition(&kind).unwrap_or_else(|| format!("{META}Status")))
    }

    fn body(&self) -> Option<(String, bool)> {
        match self.definition("") {
            Answer::Definition(name) => Some((name, true)),
            Answer::Text => None,
        }
    }

    fn scope(&self) -> &'static str {
        if self.resource.namespaced { "Namespaced" } else { "" }
    }

    fn operation(&self, method: &'static str, verb: &str, rest: &str, description: String) -> Operation {
        let resource = self.resource;
        Operation {
            method,
            id: format!("{verb}{}{rest}", camel(&resource.group, &resource.version)),
            action: Some(method),
            description,
            kind: Some(resource.gvk()),
            parameters: Vec::new(),
            body: None,
            answer: self.definition(""),
            codes: READ,
            watched: false,
            tag: tag(&resource.group, &resource.version),
            custom: self.custom,
        }
    }

    fn list(&self, suffix: &str) -> Operation {
        let resource = self.resource;
        let rest = if suffix.is_empty() {
            format!("{}{}", self.scope(), resource.kind)
        } else {
            format!("{}{suffix}", resource.kind)
        };
        Operation {
            action: Some("list"),
            parameters: LIST.to_vec(),
            answer: self.definition("List"),
            watched: resource.verbs.contains(&Verb::Watch),
            ..self.operation("get", "list", &rest, format!("list or watch objects of kind {}", resource.kind))
        }
    }

    fn collection(&self) -> Vec<Operation> {
        let resource = self.resource;
        let (scope, kind) = (self.scope(), &resource.kind);
        let mut operations = Vec::new();
        if resource.verbs.contains(&Verb::DeleteCollection) {
            let mut parameters = DELETE.to_vec();
            parameters.extend(LIST.iter().filter(|p| !matches!(p.name, "watch" | "allowWatchBookmarks")));
            parameters.push(DRY_RUN);
            let rest = format!("Collection{scope}{kind}");
            operations.push(Operation {
                action: Some("deletecollection"),
                parameters,
                body: Some((format!("{META}DeleteOptions"), false)),
                answer: Answer::Definition(format!("{META}Status")),
                ..self.operation("delete", "delete", &rest, format!("delete collection of {kind}"))
            });
        }
        if resource.verbs.contains(&Verb::List) {
            operations.push(self.list(""));
        }
        if resource.verbs.contains(&Verb::Create) {
            operations.push(Operation {
                parameters: vec![DRY_RUN, FIELD_MANAGER, FIELD_VALIDATION],
                body: self.body(),
                codes: CREATED,
                ..self.operation(
                    "post",
                    "create",
                    &format!("{scope}{kind}"),
                    format!("create {}", with_article(kind)),
                )
            });
        }
        operations
    }

    fn item(&self) -> Vec<Operation> {
        let resource = self.resource;
        let rest = format!("{}{}", self.scope(), resource.kind);
        let of = format!("the specified {}", resource.kind);
        let mut operations = self.item_operations(&resource.verbs, &rest, &of);
        if resource.verbs.contains(&Verb::Delete) {
            let answer = if answers_with_object(resource) {
                self.definition("")
            } else {
                Answer::Definition(format!("{META}Status"))
            };
            operations.push(Operation {
                parameters: [&[DRY_RUN][..], &DELETE].concat(),
                body: Some((format!("{META}DeleteOptions"), false)),
                answer,
                codes: DELETED,
                ..self.operation(
                    "delete",
                    "delete",
                    &rest,
                    format!("delete {}", with_article(&resource.kind)),
                )
            });
        }
        operations
    }

    /// What an object and its plain subresources have in common: get, replace, patch.
    fn item_operations(&self, verbs: &[Verb], rest: &str, of: &str) -> Vec<Operation> {
        let mut operations = Vec::new();
        if verbs.contains(&Verb::Get) {
            operations.push(self.operation("get", "read", rest, format!("read {of}")));
        }
        if verbs.contains(&Verb::Patch) {
            operations.push(Operation {
                parameters: vec![DRY_RUN, FIELD_MANAGER, FIELD_VALIDATION, FORCE],
                body: Some((format!("{META}Patch"), true)),
                codes: REPLACED,
                ..self.operation("patch", "patch", rest, format!("partially update {of}"))
            });
        }
        if verbs.contains(&Verb::Update) {
            operations.push(Operation {
                parameters: vec![DRY_RUN, FIELD_MANAGER, FIELD_VALIDATION],
                body: self.body(),
                codes: REPLACED,
                ..self.operation("put", "replace", rest, format!("replace {of}"))
            });
        }
        operations
    }

    fn subresource_parameters(&self, subresource: &Subresource) -> Vec<Parameter> {
        match &*subresource.name {
            "log" => LOG.to_vec(),
            "exec" => EXEC.to_vec(),
            "attach" => EXEC[1..].to_vec(),
            "portforward" => vec![PORTS],
            "proxy" => vec![PROXY_PATH],
            _ => Vec::new(),
        }
    }

    fn subresource(&self, subresource: &Subresource, suffix: &str) -> Vec<Operation> {
        let kind = &self.resource.kind;
        let name = &subresource.name;
        let rest = format!("{}{kind}{}{suffix}", self.scope(), capitalised(name));
        let own_kind = subresource.kind == self.resource.gvk();
        let definition = match builtin_definition(&subresource.kind) {
            _ if name == "log" => None,
            _ if own_kind => match self.definition("") {
                Answer::Definition(name) => Some(name),
                Answer::Text => None,
            },
            found => found,
        };
        if definition.is_none() && name != "log" {
            return self.connections(subresource, &rest);
        }
        let mut operations =
            self.item_operations(&subresource.verbs, &rest, &format!("{name} of the specified {kind}"));
        if subresource.verbs.contains(&Verb::Create) {
            operations.push(Operation {
                parameters: vec![DRY_RUN, FIELD_MANAGER, FIELD_VALIDATION],
                body: self.body(),
                codes: CREATED,
                ..self.operation("post", "create", &rest, format!("create {name} of {}", with_article(kind)))
            });
        }
        for operation in &mut operations {
            operation.kind = Some(subresource.kind.clone());
            operation.answer = definition.clone().map_or(Answer::Text, Answer::Definition);
            if let (Some((body, _)), Some(definition)) = (&mut operation.body, &definition)
                && operation.method != "patch"
            {
                body.clone_from(definition);
            }
        }
        operations
    }

    /// Requests that are passed on: exec, attach, portforward, proxy.
    fn connections(&self, subresource: &Subresource, rest: &str) -> Vec<Operation> {
        // A proxy also passes on what has no verb of its own.
        let methods: &[(&str, Verb)] = &[
            ("delete", Verb::Delete),
            ("get", Verb::Get),
            ("head", Verb::Get),
            ("options", Verb::Get),
            ("patch", Verb::Patch),
            ("post", Verb::Create),
            ("put", Verb::Update),
        ];
        let mut operations = Vec::new();
        let is_proxy = subresource.name == "proxy";
        for (method, verb) in methods {
            if !subresource.verbs.contains(verb) || !is_proxy && matches!(*method, "head" | "options") {
                continue;
            }
            operations.push(Operation {
                action: Some("connect"),
                kind: Some(subresource.kind.clone()),
                answer: Answer::Text,
                ..self.operation(
                    method,
                    "connect",
                    &format!("{}{rest}", capitalised(method)),
                    format!(
                        "connect {} requests to {} of {}",
                        method.to_uppercase(),
                        subresource.name,
                        self.resource.kind
                    ),
                )
            });
        }
        operations
    }
}

/// `a Pod`, `an Event`.
fn with_article(kind: &str) -> String {
    let article = if kind.starts_with(['A', 'E', 'I', 'O', 'U']) { "an" } else { "a" };
    format!("{article} {kind}")
}

fn builtin_definition(kind: &GroupVersionKind) -> Option<String> {
    use crate::types::{Schemas, Shape};
    match Schemas::builtin().of(&kind.group, &kind.version, &kind.kind)?.shape() {
        Shape::Object(object) => Some(object.definition.to_string()),
        _ => None,
    }
}

impl Path {
    pub(super) fn v2(&self, definitions: &mut Definitions) -> Value {
        let mut item: Map<String, Value> = self
            .operations
            .iter()
            .map(|operation| (operation.method.to_owned(), operation.v2(definitions)))
            .collect();
        if !self.parameters.is_empty() {
            let parameters = self.parameters.iter().map(Parameter::v2_or_reference).collect();
            item.insert("parameters".to_owned(), Value::Array(parameters));
        }
        Value::Object(item)
    }

    pub(super) fn v3(&self, definitions: &mut Definitions) -> Value {
        let mut item: Map<String, Value> = self
            .operations
            .iter()
            .map(|operation| (operation.method.to_owned(), operation.v3(definitions)))
            .collect();
        if !self.parameters.is_empty() {
            let parameters = self.parameters.iter().map(Parameter::v3).collect();
            item.insert("parameters".to_owned(), Value::Array(parameters));
        }
        Value::Object(item)
    }
}

impl Operation {
    fn produced(&self) -> Vec<&'static str> {
        if self.action == Some("connect") {
            return vec!["*/*"];
        }
        let mut types = match self.answer {
            Answer::Text => vec!["text/plain"],
            Answer::Definition(_) => Vec::new(),
        };
        let count = if self.custom { 2 } else { PRODUCED.len() };
        types.extend(&PRODUCED[..count]);
        if self.watched {
            types.extend(&STREAMED[..if self.custom { 1 } else { STREAMED.len() }]);
        }
        types
    }

    fn consumed(&self) -> Vec<&'static str> {
        match self.action {
            Some("patch") => {
                PATCHES.iter().filter(|p| !(self.custom && p.contains("strategic"))).copied().collect()
            }
            _ => vec!["*/*"],
        }
    }

    fn answer(&self, definitions: &mut Definitions) -> Value {
        match &self.answer {
            Answer::Definition(name) => definitions.reference(name),
            Answer::Text => json!({"type": "string"}),
        }
    }

    fn extend(&self, map: &mut Map<String, Value>) {
        if let Some(action) = self.action {
            map.insert("x-kubernetes-action".to_owned(), action.into());
        }
        if let Some(kind) = &self.kind {
            let kind = json!({"group": kind.group, "kind": kind.kind, "version": kind.version});
            map.insert("x-kubernetes-group-version-kind".to_owned(), kind);
        }
    }

    fn v2(&self, definitions: &mut Definitions) -> Value {
        let mut parameters = Vec::new();
        if let Some((definition, required)) = &self.body {
            let mut body = json!({"in": "body", "name": "body"});
            if *required {
                body["required"] = true.into();
            }
            body["schema"] = definitions.reference(definition);
            parameters.push(body);
        }
        parameters.extend(self.parameters.iter().map(Parameter::v2_or_reference));
        let mut responses = Map::new();
        for (code, text) in self.codes {
            let mut response = json!({"description": text});
            if *code != "401" {
                response["schema"] = self.answer(definitions);
            }
            responses.insert((*code).to_owned(), response);
        }
        let mut map = Map::new();
        map.insert("consumes".to_owned(), self.consumed().into());
        map.insert("description".to_owned(), self.description.as_str().into());
        map.insert("operationId".to_owned(), self.id.as_str().into());
        if !parameters.is_empty() {
            map.insert("parameters".to_owned(), parameters.into());
        }
        map.insert("produces".to_owned(), self.produced().into());
        map.insert("responses".to_owned(), Value::Object(responses));
        map.insert("schemes".to_owned(), json!(["https"]));
        map.insert("tags".to_owned(), json!([self.tag]));
        self.extend(&mut map);
        Value::Object(map)
    }

    fn v3(&self, definitions: &mut Definitions) -> Value {
        let mut map = Map::new();
        map.insert("description".to_owned(), self.description.as_str().into());
        map.insert("operationId".to_owned(), self.id.as_str().into());
        if !self.parameters.is_empty() {
            let parameters = self.parameters.iter().map(Parameter::v3).collect();
            map.insert("parameters".to_owned(), Value::Array(parameters));
        }
        if let Some((definition, required)) = &self.body {
            let schema = definitions.reference(definition);
            let content: Map<String, Value> = self
                .consumed()
                .into_iter()
                .map(|kind| (kind.to_owned(), json!({"schema": schema})))
                .collect();
            let mut body = json!({"content": content});
            if *required {
                body["required"] = true.into();
            }
            map.insert("requestBody".to_owned(), body);
        }
        let mut responses = Map::new();
        for (code, text) in self.codes {
            let mut response = json!({"description": text});
            if *code != "401" {
                let schema = self.answer(definitions);
                let content: Map<String, Value> = self
                    .produced()
                    .into_iter()
                    .map(|kind| (kind.to_owned(), json!({"schema": schema})))
                    .collect();
                response["content"] = Value::Object(content);
            }
            responses.insert((*code).to_owned(), response);
        }
        map.insert("responses".to_owned(), Value::Object(responses));
        map.insert("tags".to_owned(), json!([self.tag]));
        self.extend(&mut map);
        Value::Object(map)
    }
}
